"""All JAX-native environments by name; a user's own can be registered:

    from siamrl.envs import registry
    from siamrl.envs.tabular import chain, make_tabular

    registry.register('long_chain', lambda: make_tabular(chain(50)))

A maker takes no argument and returns a `siamrl.types.JaxEnvironment`. No
environment is made, and gymnax is not imported, before it is called.

`minatar_breakout` and the like follow the rules of the paper,
`minatar_breakout_gymnax` those of gymnax; see `siamrl.envs.minatar`.
`reacher_gymnax` and `swimmer_gymnax` are gymnax's own and differ from MuJoCo's.
"""

from collections.abc import Callable
import functools
import re

import numpy as np

from siamrl.envs import ale
from siamrl.envs.car_on_hill import make_car_on_hill
from siamrl.envs.catch import catch, catch_observations
from siamrl.envs.gym import resolve_gymnasium
from siamrl.envs.gymnax import make_gymnax
from siamrl.envs.minatar import GAMES, make_minatar
from siamrl.envs.names import closest, letters
from siamrl.envs.tabular import (
  TabularMDP,
  chain,
  four_rooms,
  grid,
  make_tabular,
  random_mdp,
)
from siamrl.types import JaxEnvironment

ENVIRONMENTS: dict[str, Callable[[], JaxEnvironment]] = {
  'cartpole': lambda: make_gymnax('CartPole-v1'),
  'cartpole_v0': lambda: make_gymnax('CartPole-v1', max_steps_in_episode=200),
  'acrobot': lambda: make_gymnax('Acrobot-v1'),
  'mountain_car': lambda: make_gymnax('MountainCar-v0'),
  'catch': lambda: make_gymnax('Catch-bsuite'),
  'deep_sea': lambda: make_gymnax('DeepSea-bsuite'),
  'discounting_chain': lambda: make_gymnax('DiscountingChain-bsuite'),
  'memory_chain': lambda: make_gymnax('MemoryChain-bsuite'),
  'umbrella_chain': lambda: make_gymnax('UmbrellaChain-bsuite'),
  'car_on_hill': make_car_on_hill,
}

# Names of those with continuous actions, known without making them.
CONTINUOUS: set[str] = set()


def discrete() -> list[str]:
  """Returns the names of environments with discrete actions."""
  return [name for name in ENVIRONMENTS if name not in CONTINUOUS]


_CONTROL = {
  'pendulum': 'Pendulum-v1',
  'mountain_car_continuous': 'MountainCarContinuous-v0',
  'reacher_gymnax': 'Reacher-misc',
  'swimmer_gymnax': 'Swimmer-misc',
}
for _name, _id in _CONTROL.items():
  ENVIRONMENTS[_name] = functools.partial(make_gymnax, _id)
  CONTINUOUS.add(_name)

# For evaluations: without a cap, a return is known after some hundred steps.
ENVIRONMENTS['pendulum_endless'] = functools.partial(
  make_gymnax, 'Pendulum-v1', max_steps_in_episode=None
)
CONTINUOUS.add('pendulum_endless')

# Processes with exactly known values, each with the env steps after which an
# episode is truncated. They are environments under the same names.
_PROCESSES: dict[str, tuple[Callable[[], TabularMDP], int | None]] = {
  'chain': (lambda: chain(10), 200),
  'slippery_chain': (lambda: chain(10, slip=0.2), 200),
  'random_mdp': (lambda: random_mdp(0, 10, 3), None),
  'grid': (lambda: grid(5, 5, goal=(4, 4)), 100),
  'four_rooms': (four_rooms, 1_000),
}
PROCESSES = {name: make for name, (make, _) in _PROCESSES.items()}

# Processes with exactly known values, and the observations of their states if
# these are not one-hot.
SOLVED: dict[
  str, tuple[Callable[[], TabularMDP], Callable[[], np.ndarray] | None]
] = {name: (make, None) for name, make in PROCESSES.items()} | {
  'catch': (catch, catch_observations)
}


def _make_process(name: str) -> JaxEnvironment:
  make, max_episode_steps = _PROCESSES[name]
  return make_tabular(make(), max_episode_steps)


for _name in _PROCESSES:
  ENVIRONMENTS[_name] = functools.partial(_make_process, _name)
for _game in GAMES:
  ENVIRONMENTS[f'minatar_{_game}'] = functools.partial(
    make_minatar, _game, 'paper'
  )
  ENVIRONMENTS[f'minatar_{_game}_gymnax'] = functools.partial(
    make_minatar, _game, 'gymnax'
  )

# Suffixes of ids: CartPole-v1, Catch-bsuite.
_ID = re.compile(r'(.*?)(?:-bsuite)?(?:-v\d+)?')
# gymnax's ids that differ from the names: Breakout-MinAtar, Reacher-misc.
_GYMNAX = {
  letters(f'{_game}-MinAtar'): f'minatar_{_game}_gymnax' for _game in GAMES
} | {letters(_id): _name for _name, _id in _CONTROL.items()}


def _bare(name: str) -> str:
  """Returns the letters of a name without the suffixes of ids."""
  match = _ID.fullmatch(name)
  return letters(match[1] if match else name)


def _known() -> dict[str, str]:
  """Returns the names in `ENVIRONMENTS` by their letters."""
  return _GYMNAX | {letters(name): name for name in ENVIRONMENTS}


def register(
  name: str, make: Callable[[], JaxEnvironment], *, continuous: bool = False
) -> None:
  """Adds an environment to `ENVIRONMENTS`.

  Args:
    name: the name for `resolve_environment`.
    make: builds the environment, without arguments.
    continuous: whether its actions are continuous; adds it to `CONTINUOUS`.

  Raises:
    ValueError: the name is taken, perhaps in another spelling, or has no
      letters.
  """
  if not letters(name):
    raise ValueError(f'a name needs letters, got {name!r}')
  taken = _known().get(letters(name))
  if taken is not None:
    raise ValueError(f'the name {name!r} is taken: {taken}')
  ENVIRONMENTS[name] = make
  if continuous:
    CONTINUOUS.add(name)


def resolve_environment(name: str, *, continuous: bool | None = None) -> str:
  """Returns an environment's name in `ENVIRONMENTS`, whatever the spelling.

  Args:
    name: 'mountain_car', 'MountainCar' or 'MountainCar-v0'; a version is
      ignored.
    continuous: whether its actions must be continuous; None for either.

  Returns:
    'mountain_car'.

  Raises:
    ValueError: there is no such environment, it is not JAX-native, or its
      actions are of the other kind; the message then names its launcher.
  """
  known = _known()
  wanted = _bare(name)
  # The unchanged name comes first: it may have been registered so.
  for spelling in (letters(name), wanted):
    if spelling in known:
      return _of_kind(known[spelling], continuous)
  try:
    game = ale.resolve_game(name)
  except (ImportError, ValueError):
    pass
  else:
    small = f'minatar_{game}'
    raise ValueError(
      f'{name!r} is an Atari game, which is not JAX-native: python -m '
      f'experiments.atari --game={game}'
      + (f' (its small version is: {small})' if small in ENVIRONMENTS else '')
    )
  for spelling in (name, wanted):
    try:
      env_id = resolve_gymnasium(spelling)
    except ValueError:
      continue
    small = f'{wanted}_gymnax'
    raise ValueError(
      f'{name!r} is {env_id} of Gymnasium, which is not JAX-native: it is '
      'stepped on the host, by siamrl.envs.gym; continuous actions are for '
      f'python -m experiments.control --environment={env_id}'
      + (f' (its small version is: {small})' if small in ENVIRONMENTS else '')
    )
  raise ValueError(f'no environment {name!r}{closest(wanted, ENVIRONMENTS)}')


def _of_kind(name: str, continuous: bool | None) -> str:
  """Returns the name itself, if the actions are of the wanted kind.

  Raises:
    ValueError: they are not.
  """
  found = name in CONTINUOUS
  if continuous in (None, found):
    return name
  kind, launcher = (
    ('continuous', 'control') if found else ('discrete', 'classic')
  )
  raise ValueError(
    f'{name} has {kind} actions: python -m experiments.{launcher} '
    f'--environment={name}'
  )
