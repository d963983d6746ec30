"""Several processes that share the runs of a sweep: how they meet.

They compute nothing together: of JAX's distributed runtime they use only the
coordinator, through which each tells the others how it went.
"""

import ipaddress
import socket
import time
from typing import Any

import jax

from experiments.config.declaring import RunError

_POLL_S = 0.2
# The longest that the first processes to end wait for the last.
_SHUTDOWN_S = 3_600


def connect(coordinator: str, num_processes: int, process_id: int) -> None:
  """Joins the other processes; must be called before JAX computes anything.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: the number of processes.
    process_id: the number of this process.

  Raises:
    RunError: they have not met within minutes.
  """
  # The service would swallow SIGTERM, which saves and stops runs.
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
  """The address at which process 0 listens: only that of the coordinator.

  None makes JAX listen on all interfaces. It is for addresses that are not of
  this machine, such as behind NAT, and for names, which on their own machine
  often mean the loopback, which the others cannot reach.
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

  It polls, as Ctrl-C does not interrupt JAX's own barriers.

  Args:
    name: a name for the value, which is used once.
    value: the value of this process.

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
