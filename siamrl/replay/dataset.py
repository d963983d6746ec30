"""Data sets: transitions that were collected before learning begins.

A data set is one `.npz` file, without pickle, with the names of D4RL (Fu et al.
2020):

| key | type | shape | |
|---|---|---|---|
| `observations` | a number or bool | [N, ...] | before each action |
| `actions` | an integer | [N] | 0 or more |
| `rewards` | a float | [N] | after each action |
| `next_observations` | as `observations` | [N, ...] | after each action |
| `terminals` | bool | [N] | the task itself ended; no value follows |
| `timeouts` | bool | [N] | cut from outside; values continue |

The steps of an episode are consecutive. Some files of D4RL lack
`next_observations`, which loses the successor of a step that was cut; here the
key is required, while `timeouts` may be missing. Other keys are ignored. To
write such a file: `numpy.savez(path, **arrays)`.
"""

from collections.abc import Callable
import contextlib
import os
import pathlib
import re
from typing import Any, NamedTuple

import chex
from gymnasium import spaces
import jax
import jax.numpy as jnp
import numpy as np

from siamrl.archive import read_arrays, reason
from siamrl.optional import import_optional
from siamrl.parameters import FieldError
from siamrl.types import JaxEnvironment, JaxTimestep, Transition

# Gymnasium's spaces whose elements are one array.
_ARRAYS = (
  spaces.Box,
  spaces.Discrete,
  spaces.MultiBinary,
  spaces.MultiDiscrete,
)

# (observations [B, ...], key) -> int [B] actions.
Policy = Callable[[chex.Array, chex.PRNGKey], chex.Array]


class Dataset(NamedTuple):
  """N transitions, as a pytree whose leaves all lead with [N].

  Attributes:
    observations: [N, ...] before each action.
    actions: int32 [N].
    rewards: float32 [N] after each action.
    next_observations: [N, ...] after each action; never after a reset.
    terminals: bool [N] whether the task itself ended there.
    timeouts: bool [N] whether the episode was cut there, by a cap or by the
      end of the data.
  """

  observations: Any
  actions: Any
  rewards: Any
  next_observations: Any
  terminals: Any
  timeouts: Any

  @property
  def size(self) -> int:
    """N, the number of transitions."""
    return len(self.actions)

  def batch(self, indices: Any, discount: chex.Numeric) -> Transition:
    """Returns a batch of transitions to learn from.

    Args:
      indices: int [B], or slice(None) for all of them.
      discount: per env step. Only a terminal step gets 0: after a step that
        was cut, values continue.
    """
    continues = 1 - self.terminals[indices].astype(np.float32)
    return Transition(
      obs_tm1=self.observations[indices],
      a_tm1=self.actions[indices],
      r_t=self.rewards[indices],
      discount_t=continues * discount,
      obs_t=self.next_observations[indices],
    )

  def multi_step(self, n_step: int, discount: chex.Numeric) -> Transition:
    """Returns all transitions, each with the rewards of up to n steps.

    A sum of rewards ends with its episode, which ends at a terminal step, at
    one that was cut, or with the data. Values continue after a sum unless its
    last step is terminal. Where n is at least the length of all episodes, sums
    are Monte-Carlo returns.

    Args:
      n_step: n, at least 1.
      discount: per env step.
    """
    if n_step == 1:
      return self.batch(slice(None), discount)
    starts = np.arange(self.size)
    ends = np.where(self.terminals | self.timeouts, starts, self.size - 1)
    ends = np.minimum.accumulate(ends[::-1])[::-1]  # of each step's episode
    last = np.minimum(starts + n_step - 1, ends)
    sums = np.array(self.rewards, np.float64)
    for k in range(1, n_step):
      alive = np.flatnonzero(starts + k <= last)
      if not len(alive):
        break
      sums[alive] += discount**k * self.rewards[alive + k]
    powers = np.power(np.float64(discount), last - starts + 1)
    return Transition(
      obs_tm1=self.observations,
      a_tm1=self.actions,
      r_t=sums.astype(np.float32),
      discount_t=np.where(self.terminals[last], 0, powers).astype(np.float32),
      obs_t=self.next_observations[last],
    )


def save_dataset(
  path: str | os.PathLike[str], dataset: Dataset, *, overwrite: bool = False
) -> None:
  """Writes a data set atomically.

  Args:
    path: ends in '.npz'; its folder exists.
    dataset: checked as by `load_dataset`.
    overwrite: whether an existing file may be replaced.

  Raises:
    FileExistsError: the file exists and `overwrite` is False.
    ValueError: the name does not end in '.npz', or the data are invalid.
    OSError: it cannot be written; an existing file is then unchanged.
  """
  path = pathlib.Path(path)
  if path.suffix != '.npz':
    raise ValueError(f'{path}: the name of a data set must end in .npz')
  dataset = _checked(dataset._asdict(), None, f'{path}: ')
  if path.exists() and not overwrite:
    raise FileExistsError(f'{path}: exists; overwrite=True replaces it')
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'wb') as file:
      np.savez(file, **dataset._asdict())
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


def load_dataset(
  path: str | os.PathLike[str], num_actions: int | None = None
) -> Dataset:
  """Reads a data set into NumPy arrays.

  Args:
    path: path of the file; its format is in the module's docstring.
    num_actions: A, if known; actions must lie below it.

  Returns:
    the data set: actions in int32, rewards in float32, and observations in the
    file's type, or the narrower one where JAX lacks that.

  Raises:
    OSError: the file is missing or cannot be opened.
    ValueError: it is not a data set, or too large; names file and key.
  """
  path = pathlib.Path(path)
  try:
    arrays = read_arrays(path, Dataset._fields)
  except ValueError as error:
    raise ValueError(f'{path}: not a data set of arrays: {error}') from error
  return _checked(arrays, num_actions, f'{path}: ')


def from_minari(source: str | os.PathLike[str]) -> Dataset:
  """Reads a data set of Minari (github.com/Farama-Foundation/Minari).

  Args:
    source: the folder of a data set, or the name of one that Minari has stored
      on this machine, such as 'cartpole/random-v0'. Nothing is downloaded.

  Returns:
    the data set. Actions count from 0; an episode that neither terminates nor
    is truncated counts as cut at its end.

  Raises:
    ImportError: the package `minari` or one of its dependencies is not
      installed or cannot be imported.
    FileNotFoundError: there is no such data set; says how to fetch it.
    ValueError: it cannot be read, its actions are not discrete, its
      observations are not arrays, or it has no steps.
  """
  data = _open_minari(source)
  if not isinstance(data.action_space, spaces.Discrete):
    raise ValueError(
      f'{source}: actions: must be discrete, got {data.action_space}'
    )
  if not isinstance(data.observation_space, _ARRAYS):
    raise ValueError(
      f'{source}: observations: must be arrays, got {data.observation_space}'
    )
  first_action = int(data.action_space.start)
  parts: dict[str, list[np.ndarray]] = {key: [] for key in Dataset._fields}
  try:
    for episode in data.iterate_episodes():
      terminals = np.asarray(episode.terminations, bool)
      timeouts = np.asarray(episode.truncations, bool) & ~terminals
      timeouts[-1:] = ~terminals[-1:]
      observations = np.asarray(episode.observations)
      parts['observations'].append(observations[:-1])
      parts['actions'].append(np.asarray(episode.actions) - first_action)
      parts['rewards'].append(np.asarray(episode.rewards, np.float64))
      parts['next_observations'].append(observations[1:])
      parts['terminals'].append(terminals)
      parts['timeouts'].append(timeouts)
    arrays = {key: np.concatenate(part) for key, part in parts.items() if part}
  except Exception as error:
    raise ValueError(f'{source}: not a data set: {reason(error)}') from error
  if not arrays:
    raise ValueError(f'{source}: it has no steps')
  return _checked(arrays, int(data.action_space.n), f'{source}: ')


def _open_minari(source: str | os.PathLike[str]) -> Any:
  """Opens a data set of Minari without reading its steps; raises as above."""
  minari = import_optional(
    'minari', 'data sets of Minari need minari', 'minari'
  )
  path = pathlib.Path(source)
  try:
    if not path.is_dir():
      return minari.load_dataset(str(source))
    inner = path / 'data'
    folder = inner if inner.is_dir() else path
    for file in folder.iterdir():
      if not (file.is_file() or file.is_dir()):  # such as an endless pipe
        raise ValueError(f'{file.name} is not a regular file')
    return minari.MinariDataset(folder)
  except ImportError:
    raise
  except FileNotFoundError as error:
    if re.fullmatch(r'([-\w]+/)*[-\w]+-v\d+', str(source)):
      text = f'no data set of that name is stored; minari download {source} '
      text += 'fetches it, and minari list remote shows all names'
    else:
      text = 'neither a folder nor a name such as atari/breakout/expert-v0; '
      text += 'minari list remote shows the names of data sets to download'
    raise FileNotFoundError(f'{source}: {text}') from error
  except Exception as error:
    raise ValueError(f'{source}: not a data set: {reason(error)}') from error


def collect(
  environment: JaxEnvironment,
  key: chex.PRNGKey,
  *,
  env_steps: int | None = None,
  episodes: int | None = None,
  num_envs: int = 1,
  policy: Policy | None = None,
) -> Dataset:
  """Collects a data set in a JAX environment, in one compiled program.

  Args:
    environment: environment to act in.
    key: random key that determines the data set.
    env_steps: transitions to collect, a multiple of `num_envs`; the last
      episode of each environment is cut. Give either this or `episodes`.
    episodes: whole episodes to collect in parallel, in an environment that
      caps them. Memory is needed as if each ran to the cap.
    num_envs: environments stepped in parallel, for `env_steps`.
    policy: (observations [B, ...], key) -> int [B] actions; None for uniformly
      random actions.

  Returns:
    the data set, in NumPy arrays; each environment's steps are consecutive.

  Raises:
    ValueError: neither or both of `env_steps` and `episodes` are given, a
      number is out of range, or actions are continuous.
  """
  if environment.action_dim:
    raise ValueError(
      f'actions are continuous, of {environment.action_dim} numbers: must be '
      'integers'
    )
  if (env_steps is None) == (episodes is None):
    raise ValueError('one of env_steps and episodes must be given')
  if episodes is not None:
    length = environment.max_episode_steps or 0
    if not length:
      raise ValueError(
        'whole episodes need an environment with a cap on their steps'
      )
    num_envs = episodes
  if num_envs < 1:
    name = 'num_envs' if episodes is None else 'episodes'
    raise FieldError(name, num_envs, 'must be at least 1')
  if env_steps is not None:
    if env_steps < 1 or env_steps % num_envs:
      raise FieldError(
        'env_steps',
        env_steps,
        f'must be a positive multiple of num_envs={num_envs}',
      )
    length = env_steps // num_envs
  if policy is None:
    policy = _evenly(environment.num_actions)

  @jax.jit
  def roll(key):
    return _roll(environment, policy, key, num_envs, length)

  # [T, E, ...] -> [E, T, ...]
  obs, actions, steps = jax.tree.map(
    lambda leaf: np.swapaxes(np.asarray(leaf), 0, 1), roll(key)
  )
  timeouts = steps.truncated
  if episodes is None:
    timeouts = timeouts.copy()
    timeouts[:, -1] |= ~steps.terminated[:, -1]
    kept = np.ones(actions.shape, bool)
  else:
    ended = steps.terminated | steps.truncated
    # Up to and including the first end.
    kept = np.cumsum(ended, axis=1) - ended == 0
  arrays = (obs, actions, steps.reward, steps.obs, steps.terminated, timeouts)
  return Dataset(*(array[kept] for array in arrays))


def _evenly(num_actions: int) -> Policy:
  """Returns the policy that draws actions uniformly."""
  return lambda obs, key: jax.random.randint(key, (len(obs),), 0, num_actions)


def _roll(
  environment: JaxEnvironment,
  policy: Policy,
  key: chex.PRNGKey,
  num_envs: int,
  length: int,
) -> tuple[jax.Array, jax.Array, JaxTimestep]:
  """Steps E environments T times; leaves lead with [T, E].

  Returns:
    (observations, int32 actions, the time steps that followed).
  """
  first_key, act_key, step_key, reset_key = jax.random.split(key, 4)

  def keys(key: chex.PRNGKey) -> jax.Array:
    return jax.random.split(key, num_envs)

  def step(carry, time):
    env_state, obs = carry
    actions = policy(obs, jax.random.fold_in(act_key, time)).astype(jnp.int32)
    env_state, timestep = jax.vmap(environment.step)(
      env_state, actions, keys(jax.random.fold_in(step_key, time))
    )
    ended = timestep.terminated | timestep.truncated
    fresh = jax.vmap(environment.reset)(
      keys(jax.random.fold_in(reset_key, time))
    )
    onward = jax.tree.map(
      lambda new, old: jnp.where(
        ended.reshape((num_envs,) + (1,) * (old.ndim - 1)), new, old
      ),
      fresh,
      (env_state, timestep.obs),
    )
    return onward, (obs, actions, timestep)

  start = jax.vmap(environment.reset)(keys(first_key))
  return jax.lax.scan(step, start, jnp.arange(length))[1]


def _checked(
  arrays: dict[str, Any], num_actions: int | None, where: str
) -> Dataset:
  """Checks arrays, and returns them as a data set in the types to learn from.

  Raises:
    ValueError: they are not a data set; begins with `where` and the key.
  """

  def wrong(key: str, what: str) -> ValueError:
    return ValueError(f'{where}{key}: {what}')

  arrays = {key: np.asarray(array) for key, array in arrays.items()}
  for key in Dataset._fields:
    if key in arrays:
      continue
    if key != 'timeouts' or 'actions' not in arrays:
      raise wrong(key, 'is missing')
    arrays[key] = np.zeros(arrays['actions'].shape, bool)
  if arrays['actions'].ndim != 1 or not len(arrays['actions']):
    raise wrong(
      'actions', f'must be [N] with N >= 1, got {arrays["actions"].shape}'
    )
  size = len(arrays['actions'])
  for key in ('rewards', 'terminals', 'timeouts'):
    if arrays[key].shape != (size,):
      raise wrong(key, f'must be [{size}] as actions, got {arrays[key].shape}')
  observations = arrays['observations']
  if observations.ndim < 1 or len(observations) != size:
    raise wrong(
      'observations',
      f'must lead with [{size}] as actions, got {observations.shape}',
    )
  following = arrays['next_observations']
  if (following.shape, following.dtype) != (
    observations.shape,
    observations.dtype,
  ):
    raise wrong(
      'next_observations',
      f'must be {observations.dtype} {observations.shape} as observations, '
      f'got {following.dtype} {following.shape}',
    )
  if arrays['rewards'].dtype.kind not in 'iuf':
    raise wrong('rewards', f'must be numbers, got {arrays["rewards"].dtype}')
  for key in ('observations', 'next_observations', 'rewards'):
    wanted = np.float32 if key == 'rewards' else arrays[key].dtype
    try:
      arrays[key] = _narrowed(arrays[key], wanted)
    except ValueError as error:
      raise wrong(key, str(error)) from error
  arrays['actions'] = _actions(arrays['actions'], num_actions, wrong)
  for key in ('terminals', 'timeouts'):
    array = arrays[key]
    if array.dtype.kind not in 'biuf' or not np.isin(array, (0, 1)).all():
      raise wrong(key, f'must be bool, got {array.dtype}')
    arrays[key] = arrays[key].astype(bool)
  return Dataset(**arrays)


def _actions(
  actions: np.ndarray,
  num_actions: int | None,
  wrong: Callable[[str, str], ValueError],
) -> np.ndarray:
  """Checks actions, and returns them in int32."""
  if actions.dtype.kind not in 'iu':
    raise wrong('actions', f'must be integers, got {actions.dtype}')
  most = np.iinfo(np.int32).max if num_actions is None else num_actions - 1
  outside = (actions < 0) | (actions > most)
  if outside.any():
    index = int(outside.argmax())
    raise wrong(
      'actions',
      f'must lie in [0, {most}], got {actions[index]} at {index}',
    )
  return actions.astype(np.int32)


def _narrowed(array: np.ndarray, dtype: Any) -> np.ndarray:
  """Converts an array to the nearest type that JAX has.

  Raises:
    ValueError: it has entries that are not finite numbers, or do not fit.
  """
  if array.dtype.kind not in 'biuf':
    raise ValueError(f'must be numbers, got {array.dtype}')
  # JAX has only this machine's byte order, and no floats beyond 64 bits.
  native = np.dtype(dtype).newbyteorder('=')
  if native.kind == 'f' and native.itemsize > 8:
    native = np.dtype(np.float64)
  with np.errstate(over='ignore'):
    narrowed = array.astype(jax.dtypes.canonicalize_dtype(native))
  if narrowed.dtype.kind == 'f':
    finite = np.isfinite(narrowed)
    if not finite.all():
      index = np.argwhere(~finite)[0].tolist()
      raise ValueError(f'must be finite, got {array[tuple(index)]} at {index}')
  elif (narrowed != array).any():
    raise ValueError(f'must fit into {narrowed.dtype}')
  return narrowed
