"""Target networks of other libraries, each in a small run of its own.

Each library trains a tiny agent as it always does, and writes a trace of two
sums after each training. Scripts that are not installed by a package are
restated: their loop, with random numbers in place of an optimizer. In an
environment with the packages of conformance_libraries.txt,

  python -m tests.conformance_libraries OUTPUT.csv

writes the table of experiments/results/README.md.
"""

from collections.abc import Callable, Iterator
import csv
import importlib.metadata
import pathlib
import re
import sys
import tempfile
from typing import Any
import warnings

import numpy as np

from siamrl.conformance import ConformanceError, check_trace
from siamrl.conformance.judging import Asked, judge
from siamrl.conformance.traces import from_columns

COLUMNS = (
  'library',
  'version',
  'learner',
  'asked',
  'rule',
  'period',
  'unit',
  'order',
  'birth',
  'statistics',
  'verdict',
  'how',
)
# Settings that show which unit a clock counts: training begins in the midst of
# a period, and comes every 4 env steps.
WARM_UP, INTERVAL, TRAIN_FREQ = 100, 200, 4


class Log:
  """A trace that grows: rows of counters and of two sums."""

  def __init__(self) -> None:
    self._rows: list[tuple[float, ...]] = []

  def __call__(self, *row: float) -> None:
    self._rows.append(tuple(map(float, row)))

  @property
  def columns(self) -> dict[str, np.ndarray]:
    names = ('env_step', 'gradient_step', 'online', 'target')
    return dict(zip(names, np.array(self._rows).T, strict=True))


def _row(
  library: str,
  version: str,
  learner: str,
  log: Log,
  how: str,
  statistics: str = 'none',
  unit: str | None = None,
  **asked: Any,
) -> dict[str, str]:
  """A row of the table, from a trace and what it was asked for."""
  trace = from_columns(log.columns, learner)
  said = str(judge(trace, Asked(rule=None)))
  try:
    said = check_trace(log.columns, unit=unit, **asked)
    verdict = 'conforms'
  except ConformanceError as error:
    verdict = f'{error.law}: {error.seen}'
    about = judge(trace, Asked(unit=unit, **asked))
    said = str(about)
  found = {
    name: re.search(rf'^{name}: (.*)$', said, re.MULTILINE)
    for name in ('rule', 'period', 'order', 'birth')
  }
  told = {name: m.group(1) if m else '' for name, m in found.items()}
  clocks = re.findall(
    r'(\d+) (gradient|env)_steps, phase (\d+)', told['period']
  )
  units = [f'{kind}_steps' for _, kind, phase in clocks if phase == '0']
  wanted = ', '.join(
    f'{k}={v}' for k, v in {**asked, 'unit': unit}.items() if v
  )
  return dict(
    zip(
      COLUMNS,
      (
        library,
        version,
        learner,
        wanted,
        # The last digits are those of a machine.
        re.sub(r'[\d.]+$', lambda m: f'{float(m[0]):.3g}', told['rule']),
        re.sub(r' \(asked.*', '', told['period']),
        units[0] if len(units) == 1 else 'either' if units else 'not told',
        told['order'],
        told['birth'],
        statistics,
        verdict,
        how,
      ),
      strict=True,
    )
  )


def _version(package: str) -> str:
  return importlib.metadata.version(package)


def _torch_total(parameters: Any) -> float:
  return sum(each.detach().double().sum().item() for each in parameters)


def _jax_total(tree: Any) -> float:
  import jax

  return sum(
    float(np.asarray(x, np.float64).sum()) for x in jax.tree.leaves(tree)
  )


def _trained(
  model: Any, nets: Callable[[Any], tuple[Any, Any]], total: Any, steps: int
) -> Log:
  """Lets a model of Stable-Baselines3's kind learn, with a row per training."""
  log = Log()

  def note() -> None:
    online, target = nets(model)
    log(model.num_timesteps, model._n_updates, total(online), total(target))

  train = model.train

  def training(*args: Any, **kwargs: Any) -> None:
    train(*args, **kwargs)
    note()

  note()
  model.train = training
  model.learn(steps)
  return log


def _statistics(model: Any, nets: Any, steps: int, **asked: Any) -> str:
  """What happens to statistics of batch normalization, from their sums."""
  named = lambda net: (
    tensor for name, tensor in net.state_dict().items() if 'running_' in name
  )
  log = _trained(
    model, lambda model: tuple(map(named, nets(model))), _torch_total, steps
  )
  try:
    check_trace(log.columns, **asked)
  except ConformanceError as error:
    return f'{error.law}: {error.seen}'
  except ValueError as error:
    return str(error)
  return 'copied at each update'


def stable_baselines3() -> Iterator[dict[str, str]]:
  """Stable-Baselines3 and sb3-contrib."""
  import gymnasium
  import sb3_contrib
  import stable_baselines3 as sb3
  from stable_baselines3.common.env_util import make_vec_env
  from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
  import torch

  class Normalized(BaseFeaturesExtractor):
    """A batch normalization in front of the network."""

    def __init__(self, space: gymnasium.spaces.Box):
      super().__init__(space, space.shape[0])
      self.norm = torch.nn.BatchNorm1d(space.shape[0])

    def forward(self, observations: Any) -> Any:
      return self.norm(observations)

  normalized = {
    'net_arch': [8],
    'features_extractor_class': Normalized,
  }
  whole = lambda net: net.parameters()
  for kind, package, net in (
    (sb3.DQN, 'stable-baselines3', 'q_net'),
    (sb3_contrib.QRDQN, 'sb3-contrib', 'quantile_net'),
  ):
    for envs in (1, 4):
      nets = lambda model, net=net: (
        getattr(model, net),
        getattr(model, f'{net}_target'),
      )
      make = lambda kwargs, kind=kind, envs=envs: kind(
        'MlpPolicy',
        make_vec_env('CartPole-v1', envs, seed=0),
        learning_starts=WARM_UP,
        train_freq=TRAIN_FREQ // envs,
        target_update_interval=INTERVAL,
        batch_size=8,
        policy_kwargs=dict(kwargs),
        seed=0,
      )
      asked = {'rule': 'hard', 'period': INTERVAL, 'unit': 'env_steps'}
      log = _trained(
        make({'net_arch': [8]}),
        lambda model, nets=nets: tuple(map(whole, nets(model))),
        _torch_total,
        2_400,
      )
      yield _row(
        package,
        _version(package),
        f'{kind.__name__}, {envs} environments',
        log,
        'run',
        _statistics(make(normalized), nets, 2_400, **asked),
        **asked,
      )
  for kind, package, more, asked in (
    (sb3.SAC, 'stable-baselines3', {}, {'rule': 'soft', 'tau': 0.02}),
    (
      sb3.SAC,
      'stable-baselines3',
      {'target_update_interval': 4},
      {'rule': 'periodic_soft', 'tau': 0.02, 'period': 4},
    ),
    (
      sb3.TD3,
      'stable-baselines3',
      {'policy_delay': 2},
      {'rule': 'periodic_soft', 'tau': 0.02, 'period': 2},
    ),
    (sb3_contrib.TQC, 'sb3-contrib', {}, {'rule': 'soft', 'tau': 0.02}),
  ):
    nets = lambda model: (model.critic, model.critic_target)
    make = lambda kwargs, kind=kind, more=more: kind(
      'MlpPolicy',
      'Pendulum-v1',
      learning_starts=50,
      batch_size=8,
      tau=0.02,
      policy_kwargs=dict(kwargs),
      seed=0,
      **more,
    )
    log = _trained(
      make({'net_arch': [8]}),
      lambda model, nets=nets: tuple(map(whole, nets(model))),
      _torch_total,
      300,
    )
    copies = {'rule': 'hard', 'period': more.get('policy_delay', 1)}
    yield _row(
      package,
      _version(package),
      ', '.join([kind.__name__, *(f'{k}={v}' for k, v in more.items())]),
      log,
      'run',
      _statistics(make(normalized), nets, 300, **copies),
      **asked,
    )


def sbx() -> Iterator[dict[str, str]]:
  """SBX, which is Stable-Baselines3 in JAX."""
  import sbx
  from stable_baselines3.common.env_util import make_vec_env

  nets = lambda model: (
    model.policy.qf_state.params,
    model.policy.qf_state.target_params,
  )
  asked = {'rule': 'hard', 'period': INTERVAL, 'unit': 'env_steps'}
  make = lambda envs: sbx.DQN(
    'MlpPolicy',
    make_vec_env('CartPole-v1', envs, seed=0),
    learning_starts=WARM_UP,
    train_freq=TRAIN_FREQ // envs,
    target_update_interval=INTERVAL,
    batch_size=8,
    policy_kwargs={'net_arch': [8]},
    seed=0,
  )
  version = _version('sbx-rl')
  for envs in (1, 4):
    log = _trained(make(envs), nets, _jax_total, 2_400)
    yield _row(
      'sbx-rl', version, f'DQN, {envs} environments', log, 'run', **asked
    )
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model'
    make(4).save(path)
    model = sbx.DQN.load(path, make_vec_env('CartPole-v1', 4, seed=0))
  log = _trained(model, nets, _jax_total, 2_400)
  yield _row(
    'sbx-rl',
    version,
    'DQN, 4 environments, saved and loaded',
    log,
    'run',
    **asked,
  )
  for kind, more in ((sbx.SAC, {}), (sbx.TD3, {'policy_delay': 2})):
    model = kind(
      'MlpPolicy',
      'Pendulum-v1',
      learning_starts=50,
      batch_size=8,
      tau=0.02,
      policy_kwargs={'net_arch': [8]},
      seed=0,
      **more,
    )
    log = _trained(model, nets, _jax_total, 300)
    yield _row(
      'sbx-rl',
      version,
      ', '.join([kind.__name__, *(f'{k}={v}' for k, v in more.items())]),
      log,
      'run',
      rule='soft',
      tau=0.02,
    )


def torchrl() -> Iterator[dict[str, str]]:
  """The updaters of TorchRL, after steps of random numbers."""
  import torch
  from torchrl.data import OneHot
  from torchrl.modules import QValueActor
  from torchrl.objectives import DQNLoss, HardUpdate, SoftUpdate

  for name, make, asked in (
    (
      'SoftUpdate',
      lambda loss: SoftUpdate(loss, tau=0.02),
      {'rule': 'soft', 'tau': 0.02},
    ),
    (
      'HardUpdate',
      lambda loss: HardUpdate(loss, value_network_update_interval=50),
      {'rule': 'hard', 'period': 50},
    ),
  ):
    torch.manual_seed(0)
    actor = QValueActor(torch.nn.Linear(3, 2), spec=OneHot(2), in_keys=['obs'])
    loss = DQNLoss(actor, delay_value=True, action_space='one-hot')
    updater = make(loss)
    online = list(loss.value_network_params.values(True, True))
    target = list(loss.target_value_network_params.values(True, True))
    log = Log()
    log(0, 0, _torch_total(online), _torch_total(target))
    for step in range(1, 301):
      with torch.no_grad():
        for each in online:
          each += 0.1 * torch.randn_like(each)
      updater.step()
      log(step, step, _torch_total(online), _torch_total(target))
    yield _row('torchrl', _version('torchrl'), name, log, 'updater', **asked)


def rejax() -> Iterator[dict[str, str]]:
  """DQN and SAC of rejax."""
  import jax
  from rejax import DQN, SAC

  dqn = DQN.create(
    env='CartPole-v1',
    num_envs=1,
    fill_buffer=WARM_UP,
    buffer_size=1_000,
    batch_size=8,
    target_update_freq=INTERVAL,
    polyak=0.0,
    exploration_fraction=0.5,
    eps_start=1.0,
    eps_end=0.1,
    agent_kwargs={},
  )
  sac = SAC.create(
    env='Pendulum-v1',
    num_envs=1,
    fill_buffer=50,
    buffer_size=1_000,
    batch_size=8,
    polyak=0.98,
  )
  for learner, algo, nets, steps, asked in (
    (
      'DQN',
      dqn,
      lambda state: (state.q_ts, state.q_target_params),
      1_000,
      {'rule': 'hard', 'period': INTERVAL, 'unit': 'env_steps'},
    ),
    (
      'SAC',
      sac,
      lambda state: (state.critic_ts, state.critic_target_params),
      300,
      {'rule': 'soft', 'tau': 0.02},
    ),
  ):
    state = algo.init_state(jax.random.key(0))
    iterate, log = jax.jit(algo.train_iteration), Log()
    for _ in range(steps):
      online, target = nets(state)
      log(
        int(state.global_step),
        int(online.step),
        _jax_total(online.params),
        _jax_total(target),
      )
      state = iterate(state)
    yield _row('rejax', _version('rejax'), learner, log, 'run', **asked)


def _restated(loop: Callable[..., None]) -> Log:
  """The trace of a loop, which is given three functions.

  They are a step of random numbers for the optimizer's, a move of the target by
  tau, and one that adds a row of env_step and gradient_step.
  """
  rng, log = np.random.default_rng(0), Log()
  nets = {'online': rng.normal(size=50)}
  nets['target'] = nets['online']

  def optimize() -> None:
    nets['online'] = nets['online'] + 0.1 * rng.normal(size=50)

  def move(tau: float) -> None:
    nets['target'] = tau * nets['online'] + (1 - tau) * nets['target']

  def note(*counters: int) -> None:
    log(*counters, nets['online'].sum(), nets['target'].sum())

  note(0, 0)
  loop(optimize, move, note)
  return log


def scripts() -> Iterator[dict[str, str]]:
  """Scripts, restated from their source at a commit."""
  cleanrl = 'fe8d8a03', 'vwxyzjn/cleanrl'

  def dqn(train: int, warm_up: int, period: int, tau: float) -> Any:
    def loop(optimize: Any, move: Any, note: Any) -> None:
      steps = 0
      for step in range(1, 6_000):
        if step > warm_up:
          if step % train == 0:
            optimize()
            steps += 1
          if step % period == 0:
            move(tau)
        note(step, steps)

    return loop

  hard = {'rule': 'hard', 'unit': 'env_steps'}
  for script, loop, asked in (
    ('dqn.py', dqn(10, 1_250, 500, 1.0), hard | {'period': 500}),
    ('dqn_atari.py', dqn(4, 1_250, 1_000, 1.0), hard | {'period': 1_000}),
    (
      'sac_continuous_action.py',
      dqn(1, 100, 1, 0.005),
      {'rule': 'soft', 'tau': 0.005},
    ),
    (
      'td3_continuous_action.py',
      dqn(1, 101, 2, 0.005),
      {'rule': 'periodic_soft', 'tau': 0.005, 'period': 2},
    ),
  ):
    yield _row(
      cleanrl[1], cleanrl[0], script, _restated(loop), 'restated', **asked
    )

  def purejaxrl(optimize: Any, move: Any, note: Any) -> None:
    updates = 0
    for timesteps in range(10, 6_000, 10):
      if timesteps > 1_250:
        optimize()
        updates += 1
      if timesteps % 500 == 0:
        move(1.0)
      note(timesteps, updates)

  yield _row(
    'luchris429/purejaxrl',
    '19f82848',
    'dqn.py',
    _restated(purejaxrl),
    'restated',
    **(hard | {'period': 500}),
  )

  def stoix(optimize: Any, move: Any, note: Any) -> None:
    steps = 0
    for rollout in range(1, 30):
      for _ in range(16):
        optimize()
        move(0.005)
        steps += 1
        note(2 * rollout, steps)

  yield _row(
    'EdanToledo/Stoix',
    '8fff19c9',
    'ff_dqn.py',
    _restated(stoix),
    'restated',
    rule='soft',
    tau=0.005,
  )


LIBRARIES = (scripts, torchrl, rejax, sbx, stable_baselines3)


def rows() -> list[dict[str, str]]:
  """The table, of the libraries that are installed."""
  found = []
  for library in LIBRARIES:
    try:
      found += list(library())
    except ModuleNotFoundError as error:
      print(f'left out: {error}', file=sys.stderr)
  return found


def main() -> None:
  warnings.simplefilter('ignore')
  with pathlib.Path(sys.argv[1]).open('w', newline='') as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows())


if __name__ == '__main__':
  main()
