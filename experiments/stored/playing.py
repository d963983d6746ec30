"""Play of a stored run's agent, as its evaluations play, with pictures."""

from collections.abc import Callable
import contextlib
import dataclasses
import os
import sys
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from experiments.config.declaring import RunError, UsageError
from experiments.families import actor_critic, q
from experiments.stored.finding import StoredRun
from experiments.stored.weights import Weights, as_state, read_weights
from experiments.suites import ale, gym
from siamrl.envs.errors import BrokenEnvironmentError
from siamrl.envs.pictures import picture_of
from siamrl.learner import Learner
from siamrl.runners import evaluation, host
from siamrl.runners.errors import NonFiniteError
from siamrl.types import acting_of

# Frames per second of the environments that are drawn here; others have 15.
_FPS = {'cartpole': 50, 'pendulum': 20, 'mountain_car': 30, 'minatar': 10}
_OTHER_FPS = 15
# Pictures are halved until their height is at most this.
_MOST_HEIGHT = 300
# Episodes that a compiled program plays at once, to bound its memory.
_AT_ONCE = 8


class Play(NamedTuple):
  """Episodes that an agent has played.

  Attributes:
    returns: the undiscounted, unclipped score of each episode.
    lengths: the env steps of each.
    cut: episodes that were cut after the most env steps of an evaluation.
    frames: uint8 [T, H, W, 3] pictures; empty if there are none.
    fps: pictures per second.
    undrawn: the reason why there are no pictures; '' if there are.
  """

  returns: list[float]
  lengths: list[int]
  cut: int
  frames: np.ndarray
  fps: float
  undrawn: str


def play(
  run: StoredRun, *, episodes: int, seed: int = 0, most_frames: int = 0
) -> Play:
  """Plays with the networks of the newest whole checkpoint.

  The agent acts as in the run's evaluations: with the parameters that they use,
  and --eval_epsilon.

  Args:
    run: a run of an agent that acts.
    episodes: number of episodes, 1 or more.
    seed: determines the episodes.
    most_frames: pictures to take, from the first episode on; 0 for none.

  Raises:
    UsageError: the run has no agent that acts.
    RunError: there is no whole checkpoint, or the environment fails.
  """
  if run.launcher in ('siamese', 'offline'):
    raise UsageError(
      f'{run.folder.path}: a run of experiments.{run.launcher}, which does not '
      'act in an environment'
    )
  networks = read_weights(run)
  try:
    if run.is_compiled:
      return _play_compiled(run, networks, episodes, seed, most_frames)
    return _play_on_host(run, networks, episodes, seed, most_frames)
  except BrokenEnvironmentError as error:
    raise RunError(f'the environment failed: {error}') from error
  except NonFiniteError as error:
    raise RunError(f'{run.folder.path}: {error}') from error


def _play_on_host(
  run: StoredRun, networks: Weights, episodes: int, seed: int, most_frames: int
) -> Play:
  """Plays in an environment that is stepped on the host."""
  config = run.config
  family: Any = actor_critic if run.launcher == 'control' else q
  if run.launcher == 'atari':
    config = dataclasses.replace(config, game=ale.find_game(config.game))
    suite: Any = ale.Suite(config)
  else:
    _draw_without_display()
    name = gym.resolve(config.environment)
    config = dataclasses.replace(config, environment=name)
    suite = gym.Suite(config)
  learner = family.make_host_learner(config, suite, family.twin_spec(config))
  params = learner.acting_params(as_state(run, networks, learner))
  pictures = _Pictures(most_frames)
  with contextlib.ExitStack() as stack:
    watch, fps = None, 0.0
    if run.launcher == 'atari':
      environments, fps = suite.make_alone(seed), suite.fps
      if most_frames:
        film = suite.make_film(seed, most_frames)
        stack.callback(film.close)
        watch, pictures.frames = film.watch, film.frames
    else:
      see = pictures.see if most_frames else None
      environments, fps = suite.make_seen(seed, see), _gym_fps(name)
    stack.callback(environments.close)
    (*_, result) = evaluation.evaluate(
      host.make_act(learner.agent),
      params,
      environments,
      jax.random.key(seed),
      config.eval_epsilon,
      episodes=episodes,
      watch=watch,
    )
  cut = 0
  if run.launcher != 'atari' and suite.episode_limit is None:
    cut = sum(n == config.eval_episode_env_steps for n in result.lengths)
  return Play(
    result.returns, result.lengths, cut, pictures.stacked(), fps, pictures.error
  )


def _draw_without_display() -> None:
  """Lets MuJoCo draw without a display, before it is imported."""
  if sys.platform == 'linux' and 'DISPLAY' not in os.environ:
    os.environ.setdefault('MUJOCO_GL', 'egl')
  # Of Gymnasium's classic environments and Box2D.
  os.environ.setdefault('PYGAME_HIDE_SUPPORT_PROMPT', '1')


def _gym_fps(name: str) -> float:
  """Frames per second that an environment of Gymnasium declares."""
  spec = gymnasium.spec(name.rpartition(':')[2])
  try:
    kind = gymnasium.envs.registration.load_env_creator(str(spec.entry_point))
    fps = float(getattr(kind, 'metadata', {}).get('render_fps') or 30)
  except Exception:  # of a package that is broken: it has been made before
    return 30.0
  return fps


class _Pictures:
  """Pictures that environments of Gymnasium show.

  Attributes:
    frames: the pictures so far.
    error: the reason why there are none; '' if there are.
  """

  def __init__(self, most: int):
    self._most = most
    self.frames: list[np.ndarray] = []
    self.error = ''

  def see(self, picture: Any) -> None:
    """Keeps a picture, or the error in its place."""
    if isinstance(picture, Exception):
      text = ' '.join(str(picture).split()) or type(picture).__name__
      self.error, self.frames = text[:300], []
    elif len(self.frames) < self._most:
      self.frames.append(_smaller(picture))

  def stacked(self) -> np.ndarray:
    """The pictures as one array."""
    if not self.frames:
      return np.zeros((0, 1, 1, 3), np.uint8)
    return np.stack(self.frames)


def _smaller(picture: np.ndarray) -> np.ndarray:
  """Halves a picture until it is small enough for a GIF."""
  while picture.shape[0] > _MOST_HEIGHT:
    height, width = (side // 2 * 2 for side in picture.shape[:2])
    blocks = picture[:height, :width].reshape(
      height // 2, 2, width // 2, 2, picture.shape[2]
    )
    picture = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
  return picture


def _play_compiled(
  run: StoredRun, networks: Weights, episodes: int, seed: int, most_frames: int
) -> Play:
  """Plays in an environment that is JAX functions."""
  loop = run.loop
  learner = loop.make_setup(run.settings).learner
  params = learner.acting_params(as_state(run, networks, learner))
  environment = loop.eval_environment or loop.environment
  draw, undrawn = None, ''
  if most_frames:
    try:
      draw = picture_of(loop.name, environment.obs_shape)
    except ImportError as error:
      undrawn = str(error)
    else:
      undrawn = '' if draw else f'{loop.name} has no pictures'
  returns: list[float] = []
  lengths: list[int] = []
  frames: list[np.ndarray] = []
  cut = 0
  for first in range(0, episodes, _AT_ONCE):
    number = min(_AT_ONCE, episodes - first)
    key = jax.random.fold_in(jax.random.key(seed), first)
    row, (rewards, played, seen) = _episodes(
      loop, learner, number, draw is not None
    )(params, key)
    cut += int(row['eval_episodes_cut'])
    played = np.asarray(played)
    scores = np.asarray(rewards, np.float64) * played
    returns += scores.sum(axis=0).tolist()
    lengths += played.sum(axis=0).tolist()
    for episode in range(number if draw is not None else 0):
      steps = int(played[:, episode].sum())
      shown = np.asarray(seen[: min(steps, most_frames - len(frames)), episode])
      frames += [draw(obs) for obs in shown] if draw else []
  stacked = np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)
  return Play(returns, lengths, cut, stacked, _fps(loop.name), undrawn)


def _episodes(
  loop: Any, learner: Learner, number: int, drawn: bool
) -> Callable[..., Any]:
  """Compiles an evaluation that records rewards and observations.

  Args:
    loop: the loop of the run.
    learner: its learner.
    number: episodes that are played at once.
    drawn: whether observations are recorded.

  Returns:
    (params, key) -> (columns, (rewards, played, observations)), [T, number].
  """
  config, acting = loop.config, acting_of(learner.agent)
  environment = loop.eval_environment or loop.environment
  most = config.eval_episode_env_steps
  shape = environment.obs_shape if drawn else (0,)

  def look(obs: jax.Array, step: Any, running: jax.Array) -> Any:
    return step.reward, running, obs if drawn else jnp.zeros((number, 0))

  @jax.jit
  def episodes(params: Any, key: jax.Array) -> Any:
    def act(obs: jax.Array, key: jax.Array) -> jax.Array:
      noise = acting.noise(key, number)
      return acting.play(params, obs, noise, config.eval_epsilon)

    record = (
      jnp.zeros((most, number), jnp.float32),
      jnp.zeros((most, number), bool),
      jnp.zeros(
        (most, number, *shape), environment.obs_dtype if drawn else jnp.float32
      ),
    )
    return evaluation.play(
      environment,
      act,
      key,
      episodes=number,
      most=most,
      look=look,
      record=record,
    )

  return episodes


def _fps(name: str) -> float:
  """Frames per second of an environment that is drawn here."""
  return next(
    (fps for start, fps in _FPS.items() if name.startswith(start)), _OTHER_FPS
  )
