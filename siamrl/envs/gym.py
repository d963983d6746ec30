"""Gymnasium's environments, such as classic control and MuJoCo.

MuJoCo's need the optional package `mujoco`, which is imported only when one is
made. Its results depend on its version, so runs record `mujoco_version`.
"""

from collections.abc import Callable
import importlib.metadata
import logging
import math
import operator
import re
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from siamrl.envs.errors import BrokenEnvironmentError, one_line, raised
from siamrl.envs.names import closest, letters
from siamrl.optional import OptionalImportError, import_optional
from siamrl.types import Timestep

# A Gymnasium id: a name and its version.
_ID = re.compile(r'(.*?)(?:-v(\d+))?')
# Gymnasium's environments that need the package mujoco are in here.
_MUJOCO = 'gymnasium.envs.mujoco.'
_BOX2D = 'gymnasium.envs.box2d'
# How far outside [-1, 1] an action may lie, for float32 rounding.
_EXCESS = 1e-6
# The largest number that 32 bits hold.
_LARGEST = float(np.finfo(np.float32).max)


def env_seeds(seed: int, num_envs: int) -> np.ndarray:
  """Returns seeds for N environments, one stream each.

  Unlike with counting up from `seed`, neighboring seeds share none of them. The
  first ones do not depend on N.

  Args:
    seed: an integer >= 0.
    num_envs: N.

  Returns:
    int32 [N], all >= 0.

  Raises:
    ValueError: the seed is negative.
  """
  seed = operator.index(seed)
  if seed < 0:
    raise ValueError(f'seed must be >= 0, got {seed}')
  words = np.random.SeedSequence(seed).generate_state(num_envs)
  return (words & 0x7FFFFFFF).astype(np.int32)


def check_actions(actions: Any, num_envs: int, num_actions: int) -> np.ndarray:
  """Checks actions, and returns them as int32 [N].

  Raises:
    ValueError: they are not N integers, or one is outside [0, num_actions).
  """
  actions = np.asarray(actions)
  if actions.shape != (num_envs,) or actions.dtype.kind not in 'iu':
    raise ValueError(
      f'actions must be {num_envs} integers, got '
      f'{actions.dtype} {list(actions.shape)}'
    )
  if actions.dtype != np.int32:
    # Bounds first: a narrowing cast could wrap a bad action into a good one.
    if ((actions < 0) | (actions >= num_actions)).any():
      raise ValueError(f'actions must lie in [0, {num_actions}), got {actions}')
    return actions.astype(np.int32)
  # As unsigned, a negative action is a large one: one comparison suffices.
  if (actions.view(np.uint32) >= num_actions).any():
    raise ValueError(f'actions must lie in [0, {num_actions}), got {actions}')
  return actions


def check_continuous(
  actions: Any, num_envs: int, action_dim: int
) -> np.ndarray:
  """Checks actions, and returns them as float32 [N, D].

  Raises:
    ValueError: they are not N x D floats, or one is NaN, or outside [-1, 1] by
      more than rounding (1e-6).
  """
  actions = np.asarray(actions)
  if actions.shape != (num_envs, action_dim) or actions.dtype.kind != 'f':
    raise ValueError(
      f'actions must be {num_envs} x {action_dim} floats, got '
      f'{actions.dtype} {list(actions.shape)}'
    )
  # Written so that NaN fails.
  inside = np.abs(actions) <= 1 + _EXCESS
  if not inside.all():
    raise ValueError(
      f'actions must lie in [-1, 1], got {actions[~inside][0]} among '
      f'{actions.tolist()}'
    )
  return actions.astype(np.float32, copy=False)


def mujoco_version() -> str | None:
  """Returns the version of the package mujoco; None if not installed."""
  try:
    return importlib.metadata.version('mujoco')
  except importlib.metadata.PackageNotFoundError:
    return None


def resolve_gymnasium(name: str) -> str:
  """Returns Gymnasium's id of an environment, whatever the spelling.

  Args:
    name: 'halfcheetah', 'HalfCheetah' or 'HalfCheetah-v5'. Without a version,
      the newest is used. 'package:Name-v0' is left to Gymnasium, which imports
      the package.

  Returns:
    'HalfCheetah-v5'.

  Raises:
    ValueError: there is no such environment, or not in that version.
  """
  if ':' in name or name in gymnasium.registry:
    return name
  # The ids of each name's letters, by version.
  known: dict[str, dict[int, str]] = {}
  for env_id, spec in gymnasium.registry.items():
    versions = known.setdefault(letters(_split(env_id)[0]), {})
    versions[-1 if spec.version is None else spec.version] = env_id
  bare, version = _split(name)
  versions = known.get(letters(bare), {})
  if not versions:
    newest = [_split(ids[max(ids)])[0] for ids in known.values()]
    raise ValueError(
      f'Gymnasium has no environment {name!r}{closest(bare, newest)}'
    )
  if version is None:
    return versions[max(versions)]
  if version not in versions:
    raise ValueError(
      f'Gymnasium has no {name!r}; the newest is {versions[max(versions)]}'
    )
  return versions[version]


def episode_limit(env_id: str) -> int | None:
  """Returns the env steps after which episodes are cut; None for no limit.

  Args:
    env_id: id from `resolve_gymnasium`; its package must be imported.

  Raises:
    gymnasium.error.Error: there is no such environment.
  """
  return _limit(gymnasium.spec(env_id.rpartition(':')[2]))


def _split(env_id: str) -> tuple[str, int | None]:
  """Returns the name and the version in an id."""
  match = _ID.fullmatch(env_id)
  if match is None or match[2] is None:
    return env_id, None
  return match[1], int(match[2])


def _make(env_id: str, **options: Any) -> gymnasium.Env:
  """Makes one environment, with options for its constructor.

  Raises:
    ImportError: a package that it needs is not installed, cannot be imported,
      or has an unsupported version.
    ValueError: there is no such environment.
  """
  spec = gymnasium.registry.get(env_id)
  try:
    if spec is not None and str(spec.entry_point).startswith(_MUJOCO):
      _log_mujoco(env_id)
    if spec is not None and str(spec.entry_point).startswith(_BOX2D):
      import_optional('Box2D', f'{env_id} needs Box2D', 'box2d')
    return gymnasium.make(env_id, disable_env_checker=True, **options)
  except OptionalImportError as error:
    raise type(error)(f'{error}{_newer(env_id)}') from error
  except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
    raise ImportError(f'{env_id}: {_reason(error)}{_newer(env_id)}') from error
  except gymnasium.error.Error as error:
    raise ValueError(str(error)) from error


def _flat(env: gymnasium.Env) -> gymnasium.Env:
  """Wraps an environment so that its observations are arrays, if possible.

  Discrete observations become one-hot vectors; tuples and dicts of spaces are
  joined into one vector.
  """
  space = env.observation_space
  if isinstance(space, Box) or not space.is_np_flattenable:
    return env
  return gymnasium.wrappers.FlattenObservation(env)


def _reason(error: Exception) -> str:
  """Returns an error's message with that of the import error that caused it.

  Gymnasium reports every failure to import a package as its absence.
  """
  if isinstance(error, ImportError) or error.__cause__ is None:
    return str(error)
  return f'{error} ({error.__cause__})'


def _newer(env_id: str) -> str:
  """Returns a hint at the newest version, or '' if `env_id` is that."""
  name, version = _split(env_id)
  newest = resolve_gymnasium(name)
  if version is None or newest in (env_id, name):
    return ''
  return f'; the newest version is {newest}'


def _log_mujoco(env_id: str) -> None:
  """Logs MuJoCo's warnings, which otherwise go to a file in the work folder."""
  mujoco = import_optional('mujoco', f'{env_id} needs mujoco', 'mujoco')
  if mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(_tell)


def _tell(message: str) -> None:
  # Users cannot fix deprecated parts of Gymnasium's models.
  level = logging.DEBUG if 'deprecated' in message else logging.WARNING
  logging.getLogger(__name__).log(level, 'MuJoCo: %s', message)


class GymnasiumEnvironments:
  """N copies of a Gymnasium environment, stepped in turn in this process.

  Implements `siamrl.types.Environments` for `Discrete` actions, or `Box`
  actions with finite bounds. Observations are not stacked: [N, 1, ...]. Spaces
  other than `Box` are flattened by Gymnasium, so that discrete observations are
  one-hot vectors. Observations of floats are flattened to vectors, and float64
  is narrowed to float32. So are 64-bit integers, which JAX would wrap around;
  float32 is exact up to 2**24. The work is done in `recv`; `send` only keeps
  the actions.

  Everything an environment returns is checked against its declarations, and
  copied: it may keep its arrays and write into them later.

  Attributes:
    env_id: the Gymnasium id.
    obs_shape: shape of an observation before flattening.
    bounds: (lowest, highest) number in observations of pixels or bytes, from 0
      to 255; None for others.
  """

  stack = 1
  frames_per_step = 1

  def __init__(
    self,
    env_id: str,
    num_envs: int = 1,
    *,
    seed: int,
    max_episode_steps: int | None = None,
    see: Callable[[Any], None] | None = None,
  ):
    """Makes the environments.

    Args:
      env_id: a Gymnasium id, such as 'CartPole-v1', or any spelling that
        `resolve_gymnasium` knows.
      num_envs: N >= 1.
      seed: an integer >= 0 that determines all episodes.
      max_episode_steps: env steps after which episodes are truncated if the
        environment was registered without a limit; None for never.
      see: called with a picture of the first environment, uint8 [H, W, 3],
        after each reset and step; or, once, with the error that drawing raised.
        None to draw nothing. Episodes are the same with and without it.

    Raises:
      ValueError: there is no such environment, its spaces are not supported, or
        an argument is too small.
      ImportError: a package that it needs is not installed.
      BrokenEnvironmentError: making it failed.
    """
    if num_envs < 1:
      raise ValueError(f'num_envs must be >= 1, got {num_envs}')
    self._seeds: list[int | None] = env_seeds(seed, num_envs).tolist()
    env_id = resolve_gymnasium(env_id)
    self._envs: list[_Environment] = []
    try:
      for number in range(num_envs):
        seen = see if number == 0 else None
        self._envs.append(_Environment(env_id, max_episode_steps, seen))
        self._envs[-1].check_like(self._envs[0])
    except BaseException:
      self.close()
      raise
    first = self._envs[0]
    self.env_id = env_id
    self.num_envs = num_envs
    self.num_actions = self.action_dim = 0
    self._bounds: Box | None = None
    if isinstance(first.actions, Discrete):
      self.num_actions = int(first.actions.n)
    else:
      self.action_dim = math.prod(first.actions.shape)
      self._bounds = first.actions
    self.frame_shape, self.frame_dtype = first.frame_shape, first.frame_dtype
    self.obs_shape: tuple[int, ...] = first.space.shape
    self.bounds: tuple[float, float] | None = None
    if (first.space.low == 0).all() and (first.space.high == 255).all():
      self.bounds = 0.0, 255.0
    self._started = False
    self._actions: np.ndarray | None = None

  def reset(self) -> np.ndarray:
    """Starts N new episodes; returns observations [N, 1, ...].

    The first call starts from the seed; a later one abandons the running
    episodes and continues the same random streams.

    Raises:
      RuntimeError: a `send` still waits for its `recv`.
      BrokenEnvironmentError: an environment raised an exception or broke its
        declarations.
    """
    if self._actions is not None:
      raise RuntimeError('reset between send and recv')
    seeds, self._seeds = self._seeds, [None] * self.num_envs
    frames = [
      env.reset(seed) for env, seed in zip(self._envs, seeds, strict=True)
    ]
    self._started = True
    return np.stack(frames)[:, None]

  def send(self, actions: np.ndarray) -> None:
    """Hands over actions: int32 [N], or float32 [N, D] in [-1, 1].

    Raises:
      RuntimeError: there was no `reset`, or no `recv` since the last `send`.
      ValueError: the actions are not N integers in [0, num_actions), or not N
        vectors in [-1, 1].
    """
    if not self._started or self._actions is not None:
      raise RuntimeError('send must follow reset or recv')
    if self._bounds is not None:
      actions = check_continuous(actions, self.num_envs, self.action_dim)
      self._actions = _stretch(actions, self._bounds)
      return
    # A copy, as the caller may change its own array before recv reads it.
    self._actions = check_actions(
      actions, self.num_envs, self.num_actions
    ).copy()

  def recv(self) -> Timestep:
    """Steps the environments, and resets those whose episode ended.

    The caller may keep the arrays. `final_obs` is `obs` itself if no episode
    ended.

    Raises:
      RuntimeError: no `send` came before.
      BrokenEnvironmentError: an environment raised an exception or broke its
        declarations.
    """
    if self._actions is None:
      raise RuntimeError('recv must follow send')
    actions, self._actions = self._actions, None
    frames, rewards, terminated, truncated = zip(
      *(env.step(a) for env, a in zip(self._envs, actions, strict=True)),
      strict=True,
    )
    obs = final_obs = np.stack(frames)[:, None]
    ended = np.logical_or(terminated, truncated)
    if ended.any():
      final_obs = obs.copy()
      for n in np.flatnonzero(ended):
        obs[n, 0] = self._envs[n].reset(None)
    return Timestep(
      obs=obs,
      reward=np.array(rewards, np.float32),
      terminated=np.array(terminated),
      truncated=np.array(truncated),
      life_lost=np.zeros(self.num_envs, bool),
      final_obs=final_obs,
    )

  def close(self) -> None:
    """Frees the environments; call nothing after it."""
    for env in self._envs:
      env.close()
    self._started = False


class _Environment:
  """One environment, checked against its declarations.

  Gymnasium's own `PassiveEnvChecker` only logs warnings and costs more than the
  step of a small environment, and `SyncVectorEnv` turns a reward of None into
  NaN.

  Attributes:
    space: the space of its observations.
    actions: the space of its actions.
    frame_shape: shape of the returned observations.
    frame_dtype: type of the returned observations.
  """

  def __init__(
    self,
    env_id: str,
    max_episode_steps: int | None,
    see: Callable[[Any], None] | None = None,
  ):
    self._id = env_id
    # Env steps of the running episode.
    self._steps = 0
    self._see = see
    try:
      self._env = _flat(self._make_drawn() if see else _make(env_id))
      space: Any = self._env.observation_space
      actions: Any = self._env.action_space
    except (ImportError, ValueError):
      raise
    except Exception as error:
      raise raised(env_id, 'making it', error) from error
    try:
      _check_spaces(env_id, space, actions)
    except ValueError:
      self.close()
      raise
    if max_episode_steps is not None and _limit(self._env.spec) is None:
      self._env = gymnasium.wrappers.TimeLimit(self._env, max_episode_steps)
    self.space, self.actions = space, actions
    self.frame_shape: tuple[int, ...] = space.shape
    self.frame_dtype = np.dtype(space.dtype)
    wide = self.frame_dtype.kind in 'iu' and self.frame_dtype.itemsize == 8
    if wide or self.frame_dtype.kind == 'f':
      self.frame_shape = (math.prod(space.shape),)
      self.frame_dtype = np.dtype(np.float32)

  def check_like(self, other: '_Environment') -> None:
    """Raises BrokenEnvironmentError if the spaces differ from the other's."""
    for mine, theirs in (
      (self.space, other.space),
      (self.actions, other.actions),
    ):
      if mine != theirs:
        self._fail(f'its spaces changed when made again: {theirs} and {mine}')

  def reset(self, seed: int | None) -> np.ndarray:
    """Starts an episode; returns its first observation."""
    self._steps = 0
    answer = self._call('reset', seed=seed)
    if not isinstance(answer, tuple) or len(answer) != 2:
      self._fail(
        f'reset returned {_count(answer)} in place of (observation, info)'
      )
    self._draw()
    return self._frame(answer[0])

  def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
    """Returns (observation, reward, terminated, truncated) after an action."""
    self._steps += 1
    answer = self._call('step', action)
    if not isinstance(answer, tuple) or len(answer) != 5:
      self._fail(
        f'step returned {_count(answer)} in place of (observation, reward, '
        'terminated, truncated, info)'
      )
    obs, reward, terminated, truncated, _ = answer
    self._draw()
    return (
      self._frame(obs),
      self._reward(reward),
      self._end('terminated', terminated),
      self._end('truncated', truncated),
    )

  def _make_drawn(self) -> gymnasium.Env:
    """Makes an environment that draws, or one that does not if it cannot."""
    env = _make(self._id)
    if 'rgb_array' not in (env.metadata.get('render_modes') or ()):
      self._show(ValueError(f'{self._id} draws no pictures'))
      return env
    try:
      drawn = _make(self._id, render_mode='rgb_array')
    except Exception as error:
      self._show(error)
      return env
    env.close()
    return drawn

  def _draw(self) -> None:
    """Shows a picture; after an error nothing more is drawn."""
    if self._see is None:
      return
    try:
      picture: Any = np.asarray(self._env.render(), np.uint8)
      if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f'render returned an array {list(picture.shape)}')
    except Exception as error:
      picture = error
    self._show(picture)

  def _show(self, picture: Any) -> None:
    """Shows a picture, or an error that is the last that is shown."""
    assert self._see is not None
    see = self._see
    if isinstance(picture, Exception):
      self._see = None
    see(picture)

  def close(self) -> None:
    """Frees the environment; errors in doing so are only logged."""
    try:
      self._env.close()
    except Exception as error:
      logging.getLogger(__name__).warning(
        '%s', raised(self._id, 'close', error)
      )

  def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
    try:
      return getattr(self._env, name)(*args, **kwargs)
    except Exception as error:
      raise raised(self._id, name, error) from error

  def _frame(self, obs: Any) -> np.ndarray:
    """Checks an observation, and returns a copy in the declared form."""
    space, dtype = self.space, self.frame_dtype
    try:
      array = np.asarray(obs)
    except Exception:  # such as a list of rows that differ in length
      self._fail(f'{self._observation} is not an array: {one_line(obs)}')
    if array.shape != space.shape or not np.can_cast(
      array.dtype, space.dtype, 'same_kind'
    ):
      self._fail(
        f'{self._observation} is {array.dtype} {list(array.shape)}, and its '
        f'space {np.dtype(space.dtype)} {list(space.shape)}'
      )
    with np.errstate(over='ignore'):  # caught below
      frame = array.astype(dtype).reshape(self.frame_shape)
    if dtype.kind == 'f':
      fits = np.isfinite(frame)
      if not fits.all():
        value = array.reshape(self.frame_shape)[~fits][0]
        self._fail(
          f'{self._observation} holds {value}, which is not a finite number '
          'of 32 bits'
        )
    elif array.dtype != dtype and (frame != array).any():
      self._fail(f'{self._observation} holds numbers that {dtype} cannot')
    return frame

  def _reward(self, reward: Any) -> float:
    try:
      if isinstance(reward, str | bytes) or np.ndim(reward):
        raise TypeError
      value = float(reward)
    except (TypeError, ValueError):
      self._fail(f'the reward of {self._step} is not a number: {reward!r}')
    if not abs(value) <= _LARGEST:  # written so that NaN fails
      self._fail(
        f'the reward of {self._step} is {value}, which is not a finite number '
        'of 32 bits'
      )
    return value

  def _end(self, name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
      array = np.asarray(value)
      if array.dtype != bool or array.ndim:
        self._fail(f'{name} of {self._step} is not a bool: {value!r}')
    return bool(value)

  @property
  def _step(self) -> str:
    return f'step {self._steps} of an episode'

  @property
  def _observation(self) -> str:
    if self._steps:
      return f'the observation of {self._step}'
    return 'the first observation of an episode'

  def _fail(self, text: str) -> NoReturn:
    raise BrokenEnvironmentError(one_line(f'{self._id}: {text}'))


def _count(answer: Any) -> str:
  """Describes what was returned in place of several values."""
  if isinstance(answer, tuple):
    return f'{len(answer)} values'
  return f'one {type(answer).__name__}'


def _limit(spec: Any) -> int | None:
  """Returns the env steps after which episodes are cut; None for no limit."""
  limit = None if spec is None else spec.max_episode_steps
  return limit if limit is None or limit > 0 else None


def _check_spaces(env_id: str, space: Any, actions: Any) -> None:
  """Checks that the spaces of an environment are supported.

  Raises:
    ValueError: they are not; names them.
  """
  continuous = isinstance(actions, Box) and np.dtype(actions.dtype).kind == 'f'
  discrete = isinstance(actions, Discrete) and actions.start == 0
  if not isinstance(space, Box) or not (continuous or discrete):
    raise ValueError(
      f'{env_id} needs observations that are arrays or can be flattened, and '
      'Discrete actions from 0 or a Box of floats, got '
      f'{one_line(space)} and {one_line(actions)}'
    )
  for name, box in (('observations', space), ('actions', actions)):
    if not math.prod(box.shape):
      raise ValueError(f'{env_id} has empty {name}: {one_line(box)}')
  if continuous and not actions.is_bounded():
    raise ValueError(
      one_line(
        f'{env_id} has actions from {actions.low} to {actions.high}: both ends '
        'must be finite'
      )
    )


def _stretch(actions: np.ndarray, space: Box) -> np.ndarray:
  """Scales actions [N, D] in [-1, 1] to a space's bounds, in a new array."""
  low, high = space.low, space.high
  # From the middle, so that bounds of -1 and 1 keep actions bit for bit.
  stretched = (low / 2 + high / 2) + (high / 2 - low / 2) * actions.reshape(
    -1, *space.shape
  )
  return stretched.clip(low, high).astype(space.dtype)
