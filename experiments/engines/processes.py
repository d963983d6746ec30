"""Several processes that share the runs of a sweep: how they meet.

They compute nothing together, so that all they need of JAX's distributed
runtime is its coordinator, through which each tells the others how it went.
"""

import ipaddress
import socket
import time
from typing import Any

import jax

from experiments.config.declaring import RunError

_POLL_S = 0.2
# What the first processes to end wait for the last at most.
_SHUTDOWN_S = 3_600


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
  """Joins the other processes. Call it before JAX computes anything.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: how many there are.
    process_id: this one's number.

  Raises:
    RunError: they have not met within minutes.
  """
  # It would take SIGTERM, which is to save and stop, and do nothing with it.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      coordinator_bind_address=_bind_address(coordinator),
      shutdown_timeout_seconds=_SHUTDOWN_S,
    )
  except (RuntimeError, ValueError) as error:
    text = ' '.join(str(error).split())[:300]
    raise RunError(f'--coordinator={coordinator}: {text}') from error


def _bind_address(coordinator: str) -> str | None:
  """Where process 0 listens: at the coordinator's address and nowhere else.

  None, for JAX to listen on all interfaces, where that is not an address of
  this machine (behind NAT, for one), or where it is a name: on its own machine
  a name often stands for the loopback, which the others cannot reach.
  """
  host, _, _ = coordinator.rpartition(':')
  if host == 'localhost':
    return coordinator
  host = host.removeprefix('[').removesuffix(']')
  try:
    version = ipaddress.ip_address(host).version
  except ValueError:
    return None
  family = socket.AF_INET if version == 4 else socket.AF_INET6
  try:
    with socket.socket(family) as probe:
      probe.bind((host, 0))
  except OSError:
    return None
  return coordinator


def gather(name: str, value: str) -> list[str]:
  """Tells all processes a value, and waits for theirs.

  It looks again and again: a Ctrl-C would not interrupt JAX's own barriers.

  Args:
    name: of what is told; each name is used once.
    value: this process's.

  Returns:
    The values of all processes, in their order.
  """
  from jax._src import distributed  # JAX has no public name for it

  client: Any = distributed.global_state.client
  client.key_value_set(f'siamrl/{name}/{jax.process_index()}', value)
  while True:
    found = dict(client.key_value_dir_get(f'siamrl/{name}/'))
    values = {key.rpartition('/')[2]: value for key, value in found.items()}
    if len(values) == jax.process_count():
      return [values[str(number)] for number in range(len(values))]
    time.sleep(_POLL_S)
