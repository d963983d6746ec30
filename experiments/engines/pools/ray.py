"""Tasks of a Ray cluster, each of which runs a job on one of its nodes."""

from collections.abc import Sequence
import collections
import math
import os
import pathlib
import secrets
import socket
import sys
import time
from typing import Any, NamedTuple

from experiments.config.declaring import RunError, UsageError
from experiments.engines import pools
from experiments.engines.pools import (
  Began,
  Ended,
  Job,
  Resources,
  pinning,
)
from siamrl.optional import import_optional

# Losses of a node or a worker after which Ray starts a task again by itself.
_LOSSES = 3
_CHECK_S = 120.0
# Seconds between two questions to the board, which take some time of a core.
_BOARD_S = 1.0
_MARK = '.ray'
_OBJECTS_BYTES = 100_000_000  # events are small
# Prefixes of the environment variables that a job gets from the driver.
_OURS = ('JAX_', 'PYTHON', 'XLA_')
# Ray sets it to the cores of a task.
_THREADS = 'OMP_NUM_THREADS'


class _Place(NamedTuple):
  """The place that a job must find on every node.

  Attributes:
    mark: a file in the folder of the sweep.
    text: the content of that file.
    directory: the working directory.
    environment: environment variables, see `pools.start`.
  """

  mark: str
  text: str
  directory: str
  environment: dict[str, str | None]

  def problem(self) -> str | None:
    """The fault of this machine, in words; None if there is none."""
    mark = pathlib.Path(self.mark)
    try:
      found = mark.read_text(encoding='utf-8')
    except OSError:
      found = ''
    if found != self.text:
      return f'does not see {mark.parent} of the machine that drives the sweep'
    for path in (self.directory, sys.executable):
      if not os.path.exists(path):
        return f'has no {path}'
    return None


class _Board:
  """An actor that collects the events of tasks until they are asked for."""

  def __init__(self) -> None:
    self._events: list[Began] = []

  def put(self, event: Began) -> None:
    """Adds an event."""
    self._events.append(event)

  def take(self) -> list[Began]:
    """The events since the last call."""
    events, self._events = self._events, []
    return events


def _run(job: Job, place: _Place, board: Any) -> tuple[Began, Ended]:
  """Runs a job; the body of a task."""
  where = socket.gethostname()
  if job.needs.gpus:
    where += f', GPU {os.environ.get("CUDA_VISIBLE_DEVICES")}'
  began = Began(job.name, where)
  problem = place.problem()
  if problem is not None:
    return began, Ended(job.name, None, why=f'{where} {problem}')
  os.chdir(place.directory)
  # Its answer is not waited for: a task that waits gives its cores to another.
  board.put.remote(began)
  return began, pools.run(job, environment=place.environment, between=True)


class RayPool:
  """Jobs as tasks of a Ray cluster, which chooses the nodes.

  Ray starts a task again whose node was lost; the job resumes.

  Attributes:
    at_a_time: jobs that fit the nodes of the cluster.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    number: int | None,
    address: str | None,
    needs: Resources,
  ):
    """Joins a cluster, or starts one on this machine.

    Args:
      folder: the folder of the sweep.
      number: most jobs at a time; None for as many as the cluster can hold.
      address: the cluster to join; None to start one.
      needs: what each job may use; no memory is set aside if it names none.

    Raises:
      UsageError: there is no such cluster, or it does not have as much.
      RunError: Ray cannot be used.
    """
    # Ray's default is to start a task again for ever if memory ran out.
    os.environ.setdefault('RAY_task_oom_retries', str(_LOSSES))
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    try:
      self._ray = import_optional('ray', '--launcher=ray needs Ray', 'ray')
    except ImportError as error:
      raise RunError(str(error)) from error
    self._number = number
    self._folder = folder.absolute()
    self._needs = {
      'num_cpus': needs.cores,
      'num_gpus': needs.gpus,
      'memory': int((needs.memory_gb or 0) * 1e9),
    }
    self._queue: collections.deque[Job] = collections.deque()
    self._running: dict[Any, str] = {}  # by reference to their results
    self._began: dict[str, float] = {}
    self._asked = -math.inf
    self._place: _Place | None = None
    self._connect(address)
    try:
      self.at_a_time: int | None = self._count()
    except UsageError:
      self._ray.shutdown()
      raise
    self._board = self._here(self._ray.remote(_Board)).remote()
    self._task = self._ray.remote(_run)

  def submit(self, jobs: Sequence[Job]) -> None:
    """Queues jobs.

    Raises:
      UsageError: a node does not see the folder of the sweep.
    """
    if self._place is None:
      self._place = self._make_place()
      self._check_nodes(self._place)
    self._queue.extend(jobs)

  def poll(self) -> list[Began | Ended]:
    """Hands jobs to Ray, and notices those that have begun or ended."""
    while self._queue and len(self._running) < (self._number or math.inf):
      job = self._queue.popleft()
      task = self._task.options(
        **self._needs,
        name=job.name,
        max_retries=_LOSSES,
        scheduling_strategy='SPREAD',
      )
      reference = task.remote(job, self._place, self._board)
      self._running[reference] = job.name
    if not self._running:
      return []
    done, _ = self._ray.wait(
      list(self._running), num_returns=len(self._running), timeout=0
    )
    events: list[Began | Ended] = []
    if not done and time.monotonic() - self._asked < _BOARD_S:
      return events
    self._asked = time.monotonic()
    for event in self._ray.get(self._board.take.remote()):
      if event.name in self._running.values():
        self._began[event.name] = time.monotonic()
        events.append(event)
    for reference in done:
      events += self._ended(reference)
    return events

  def stop(self) -> None:
    """Asks running jobs to save and stop, and drops queued ones."""
    self._queue.clear()
    for reference in self._running:
      self._ray.cancel(reference, recursive=False)

  def close(self) -> None:
    """Waits for jobs that still run, and leaves the cluster."""
    self.stop()
    if self._running:
      self._ray.wait(list(self._running), num_returns=len(self._running))
    self._running.clear()
    self._ray.shutdown()
    if self._place is not None:
      pathlib.Path(self._place.mark).unlink(missing_ok=True)

  def _ended(self, reference: Any) -> list[Began | Ended]:
    """The events of a task that has ended; none if it was dropped."""
    name = self._running.pop(reference)
    began = self._began.pop(name, None)
    seconds = 0.0 if began is None else time.monotonic() - began
    errors = self._ray.exceptions
    try:
      # The board may say later that it began.
      first, last = self._ray.get(reference)
      return [last] if began is not None else [first, last]
    except errors.TaskCancelledError:
      if began is None:
        return []
      why = 'was stopped'
    except errors.OutOfMemoryError:
      why = 'its node ran out of memory'
    except errors.NodeDiedError:
      why = 'its node was lost'
    except errors.WorkerCrashedError:
      why = 'the worker of Ray was killed, or its node was lost'
    except errors.RayError as error:
      why = _line(error)
    last = Ended(name, None, seconds, why=why)
    return [last] if began is not None else [Began(name, 'a node'), last]

  def _connect(self, address: str | None) -> None:
    """Joins the cluster, or starts one."""
    how: dict[str, Any] = {
      'address': address or 'local',
      'configure_logging': False,
      'log_to_driver': False,
      # For the workers alone, which import this module.
      'runtime_env': {'env_vars': {'PYTHONPATH': _python_path()}},
    }
    if address is None:
      how |= {
        'include_dashboard': False,
        'num_cpus': len(pinning.cores()),
        'object_store_memory': _OBJECTS_BYTES,
      }
    try:
      self._ray.init(**how)
    except (OSError, RuntimeError, ValueError) as error:
      if address is None:
        raise RunError(f'Ray does not start: {_line(error)}') from error
      raise UsageError(
        f'--ray_address={address} must be a Ray cluster, such as HOST:6379 '
        '(one with tokens also needs RAY_AUTH_MODE=token in the environment): '
        f'{_line(error)}'
      ) from error

  def _count(self) -> int:
    """The number of jobs that the nodes can run at a time."""
    wanted = {
      'CPU': self._needs['num_cpus'],
      'GPU': self._needs['num_gpus'],
      'memory': self._needs['memory'],
    }
    counts, nodes = [], []
    for node in self._nodes():
      has = node['Resources']
      counts.append(
        min(int(has.get(k, 0) // v) for k, v in wanted.items() if v)
      )
      nodes.append(
        f'{node["NodeManagerAddress"]} has {has.get("CPU", 0):g} cores, '
        f'{has.get("GPU", 0):g} GPUs and {has.get("memory", 0) / 1e9:.1f} GB'
      )
    if not sum(counts):
      asked = f'cores = {wanted["CPU"]}, gpus = {wanted["GPU"]}'
      if wanted['memory']:
        asked += f', memory_gb = {wanted["memory"] / 1e9:g}'
      raise UsageError(
        f'{asked} must fit a node of the Ray cluster: {"; ".join(nodes)}'
      )
    return min(sum(counts), self._number or sum(counts))

  def _nodes(self) -> list[dict[str, Any]]:
    return [node for node in self._ray.nodes() if node['Alive']]

  def _here(self, remote: Any, node: str | None = None) -> Any:
    """A task or an actor that takes no cores, on this node or another."""
    strategies = self._ray.util.scheduling_strategies
    return remote.options(
      num_cpus=0,
      scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(
        node or self._ray.get_runtime_context().get_node_id(), soft=False
      ),
    )

  def _make_place(self) -> _Place:
    """Writes the file that all nodes must see."""
    text = secrets.token_hex()
    mark = self._folder / _MARK
    mark.write_text(text, encoding='utf-8')
    environment: dict[str, str | None] = {
      name: value
      for name, value in os.environ.items()
      if name.startswith(_OURS)
    }
    for name in (_THREADS, 'PYTHONPATH'):
      environment[name] = os.environ.get(name)
    return _Place(str(mark), text, os.getcwd(), environment)

  def _check_nodes(self, place: _Place) -> None:
    """Raises UsageError for a node where jobs could not run."""
    check = self._ray.remote(_Place.problem)
    asked = {
      self._here(check, node['NodeID']).remote(place): node
      for node in self._nodes()
    }
    for reference, node in asked.items():
      try:
        problem = self._ray.get(reference, timeout=_CHECK_S)
      except self._ray.exceptions.RayError as error:
        problem = f'cannot run siamrl: {_line(error)}'
      if problem is not None:
        raise UsageError(
          f'--launcher=ray: node {node["NodeManagerAddress"]} {problem}; all '
          'nodes must share the folder of the sweep and the installation'
        )


def _python_path() -> str:
  """The search path with which a worker finds the package as this one does."""
  root = pathlib.Path(__file__).parents[3]
  return os.pathsep.join(
    [str(root), *filter(None, [os.environ.get('PYTHONPATH')])]
  )


def _line(error: Exception) -> str:
  """The last line of an error, which says most in those of Ray."""
  cause = getattr(error, 'cause', None) or error
  lines = str(cause).strip().splitlines()
  return lines[-1] if lines else type(cause).__name__
