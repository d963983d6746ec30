"""Deep Q-learning on Atari 2600 games.

Five minutes of Road Runner, then a published agent on another game:

  python -m experiments.atari --flagfile=experiments/flagfiles/quickstart.flags
  python -m experiments.atari \\
      --flagfile=experiments/flagfiles/nature_dqn.flags --game=breakout

A run keeps everything in its folder, --run_dir: its flags, metrics.csv, a
curve, TensorBoard events, checkpoints. Ctrl-C or SIGTERM saves and stops it,
and the same command, without --overwrite, resumes it as if it had never
stopped; after a crash, from its last checkpoint.

Flag files for published agents lie in experiments/flagfiles; the defaults below
are those of Nature DQN. Exit codes: 0 for a run that finished or was stopped, 2
for flags that cannot be, 1 for anything else in the way, 130 for a second
Ctrl-C.
"""

from collections.abc import Generator
import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import (
  latent as latent_options,
  learning as options,
  panel as panel_options,
  targets as target_options,
  twin as twin_options,
)
from experiments.config.declaring import (
  FRACTION,
  INT64,
  NOT_NEGATIVE,
  POSITIVE,
  RunError,
  UsageError,
  choice,
  group,
  one_of,
  option,
  path_option,
  refuse,
  usage_errors,
)
from experiments.config.executing import run
from experiments.config.reading import say_idle
from experiments.engines import (
  devices,
  folders,
  host as host_engine,
  memory,
  running,
)
from siamrl import augment, diagnostics, learner, schedule
from siamrl.agents import latent
from siamrl.envs.ale import AtariEnvironments, AtariProtocol, resolve_game
from siamrl.learner import Learner, TwinSpec
from siamrl.networks.q_network import QNetwork, nature_network
from siamrl.optional import import_optional
from siamrl.replay.host import HostReplay
from siamrl.report import panel
from siamrl.report.curves import plot_run
from siamrl.report.human_normalised import human_normalised
from siamrl.report.metrics import read_metrics
from siamrl.report.run_folder import RunFolder
from siamrl.report.video import write_gif
from siamrl.runners import evaluation, host
from siamrl.types import Agent, Params, Schedule, TrainState


# They start one after the other.
_MOST_EMULATORS = 1_024
# Of an emulator, as measured.
_EMULATOR_NBYTES = 1_500_000

AUGMENTATIONS = {
  'none': 'nothing',
  'shift': 'moved by up to 4 pixels (DrQ)',
  'shift_intensity': 'and made brighter or darker by 5 % or so (SPR)',
}
_AUGMENT: dict[str, augment.Augmentation] = {
  'shift': functools.partial(augment.shift, pixels=4),
  'shift_intensity': augment.AUGMENTATIONS['frames'],
}


@dataclasses.dataclass(frozen=True)
class AtariConfig(
  panel_options.PanelOptions,
  latent_options.LatentOptions,
  target_options.TargetOptions,
  twin_options.TwinOptions,
):
  """The options; their defaults are Nature DQN's (Mnih et al. 2015)."""

  _run: Any = group('The run')
  run_dir: str | None = path_option(
    None, 'Folder of the run; runs/GAME-AGENT-SEED if not given.'
  )
  overwrite: bool = option(
    False, 'Start afresh where the folder holds a run already.'
  )
  seed: int = options.seed('Everything random follows from it.')
  platform: str | None = options.platform()
  frames: int = option(
    200_000_000,
    'Emulator frames of the whole run.',
    POSITIVE,
    most=INT64,  # checked in env steps and gradient steps
  )
  iteration_frames: int = option(
    1_000_000,
    'Emulator frames of training from one row of metrics.csv, '
    'evaluation and checkpoint to the next.',
    POSITIVE,
    most=INT64,
  )
  checkpoint_period_s: float = option(
    600, 'Seconds between two checkpoints inside an iteration.', POSITIVE
  )
  fresh_environments: bool = options.fresh_environments()

  _protocol: Any = group('The game')
  game: str = option('pong', 'Any spelling: ms_pacman, MsPacman.')
  num_envs: int = option(
    1,
    'Emulators stepped in parallel; must divide --train_period or be a '
    'multiple of it',
    POSITIVE,
    most=_MOST_EMULATORS,
  )
  sticky_action_probability: float = option(
    0.0, 'Chance per frame that the emulator repeats the last action.', FRACTION
  )
  noop_max: int = option(
    30,
    'No-op frames at most at the start of an episode',
    NOT_NEGATIVE,
    most=10_000,
  )
  fire_on_reset: bool = option(False, 'Press FIRE to start an episode.')
  frame_skip: int = option(
    4, 'Emulator frames per env step', POSITIVE, most=1_000
  )
  frame_cap: int = option(
    108_000, 'Emulator frames per episode, at most; a truncation.', POSITIVE
  )
  full_action_set: bool = option(
    False, 'All 18 actions rather than those that the game knows.'
  )

  _agent: Any = group('The agent')
  head: str = options.head()
  hidden_units: int = option(
    512,
    'Of the layer after the convolutions; 0 for no such layer.',
    NOT_NEGATIVE,
  )
  padding: str = options.padding()
  initializer: str = options.initializer()
  layer_norm: bool = options.layer_norm()
  discount: float = options.discount()
  n_step: int = options.n_step()
  reward_clip: float = options.reward_clip(1.0)
  life_loss_terminates: bool = option(
    True, 'A lost life ends the return for learning; the game goes on.'
  )

  _learning: Any = group('Learning')
  optimizer: str = options.optimizer('rmsprop_centred')
  learning_rate: float = options.learning_rate(2.5e-4)
  optimizer_eps: float = options.optimizer_eps(0.01)
  rmsprop_decay: float = options.rmsprop_decay()
  anneal_learning_rate: bool = options.anneal_learning_rate()
  max_gradient_norm: float = options.max_gradient_norm()
  td_loss: str = options.td_loss('clipped')
  error_bound: float = options.error_bound()
  batch_reduction: str = options.batch_reduction('sum')
  param_dtype: str = options.param_dtype()
  augmentation: str = choice(
    'none', 'What is done to the frames learnt from:', AUGMENTATIONS
  )
  batch_size: int = options.batch_size(32)
  train_period: int = options.train_period(4)
  train_steps: int = options.train_steps()
  min_replay: int = options.min_replay(50_000)
  replay_capacity: int = option(
    1_000_000,
    'Transitions; 7.1 kB of memory each, taken as it fills.',
    POSITIVE,
    most=INT64,  # the memory ends sooner
  )

  _acting: Any = group('Acting')
  acting: str = option(
    'exact',
    'exact: with the newest parameters; the learner works beside the last env '
    'step of a round. overlapped: with those of one round before; it works '
    'beside the first',
    one_of(('exact', 'overlapped')),
  )
  epsilon_start: float = options.epsilon_start()
  epsilon_end: float = options.epsilon_end(0.1)
  epsilon_hold: int = options.epsilon_hold(50_000)
  epsilon_decay: int = options.epsilon_decay(1_000_000)

  _evaluation: Any = group('Evaluation, after each iteration')
  eval_frames: int = option(
    500_000,
    'Frames to play; the episodes that end within them count. 0: '
    'see --eval_episodes.',
    NOT_NEGATIVE,
  )
  eval_episodes: int = option(
    0,
    'Episodes to play. With --eval_frames=0 too: no evaluation.',
    NOT_NEGATIVE,
  )
  eval_epsilon: float = option(0.05, 'Chance of a random action.', FRACTION)
  eval_envs: int = option(
    1, 'Emulators stepped in parallel', POSITIVE, most=_MOST_EMULATORS
  )
  video: bool = option(
    False, 'Record the first episode of each evaluation as a GIF.'
  )

  @property
  def evaluates(self) -> bool:
    """Whether there is an evaluation."""
    return self.eval_frames > 0 or self.eval_episodes > 0

  def env_steps(self, frames: int) -> int:
    """Frames as env steps."""
    return frames // self.frame_skip


def main(config: AtariConfig) -> None:
  """Trains an agent as the options say."""
  with devices.StopRequest() as stop:
    _train(config, stop)


def _train(config: AtariConfig, stop: devices.StopRequest) -> None:
  game = _resolve_game(config.game)
  run_dir = config.run_dir or f'runs/{game}-{config.agent}-{config.seed}'
  config = dataclasses.replace(config, game=game, run_dir=run_dir)
  _check(config)
  devices.configure(config.platform)

  with usage_errors():
    parts, derived = build(config, RunFolder(run_dir))
  say_idle([config], drop)
  with folders.open_run(config, derived) as folder:
    host_engine.run(folder, parts, stop)


def _resolve_game(name: str) -> str:
  try:
    return resolve_game(name)
  except ValueError as error:
    raise UsageError(f'--game={name}: {error}') from error
  except ImportError as error:
    raise RunError(str(error)) from error


def drop(config: AtariConfig) -> list[str]:
  """Options that mean nothing to the run."""
  evaluating = [] if config.evaluates else ['eval_epsilon', 'eval_envs']
  with usage_errors():  # paths that cannot be read
    return [
      *evaluating,
      *options.meaningless(config),
      *panel_options.meaningless(config),
      *latent_options.meaningless(config),
      *target_options.meaningless(config),
      *twin_options.meaningless(config),
    ]


def _check(config: AtariConfig) -> None:
  """Raises UsageError for options that do not go together."""
  round_frames = config.frame_skip * max(config.num_envs, config.train_period)
  for name in ('frames', 'iteration_frames'):
    if getattr(config, name) % round_frames:
      refuse(
        config,
        name,
        f'be a multiple of {round_frames}, the frames of a '
        'round (--frame_skip times the larger of --train_period and '
        '--num_envs)',
      )
  if config.reset_optimizer and config.anneal_learning_rate:
    refuse(config, 'anneal_learning_rate', 'be false with --reset_optimizer')
  with usage_errors():
    latent_options.check(config)
    panel_options.check(
      config,
      iteration_env_steps=config.env_steps(
        min(config.iteration_frames, config.frames)
      ),
      capacity=config.replay_capacity,
      unready=config.n_step * config.num_envs,
    )
  _check_evaluation(config)
  _check_replay(config)
  env_steps = config.env_steps(config.frames)
  options.check_learns(
    config,
    length='frames',
    env_steps=env_steps,
    round_env_steps=max(config.num_envs, config.train_period),
    gradient_steps=_units(config).gradient_steps_of(env_steps),
  )


def _check_evaluation(config: AtariConfig) -> None:
  if config.eval_frames and config.eval_episodes:
    refuse(
      config,
      'eval_episodes',
      f'be 0 where --eval_frames={config.eval_frames} is not',
    )
  if 0 < config.eval_frames < config.frame_skip:
    refuse(
      config,
      'eval_frames',
      f'be 0, or at least --frame_skip={config.frame_skip}',
    )
  if config.video and not config.evaluates:
    refuse(
      config, 'video', 'go with an evaluation: --eval_frames or --eval_episodes'
    )
  if config.video:
    try:
      import_optional('PIL.Image', '--video needs Pillow', 'plots')
    except ImportError as error:
      raise RunError(str(error)) from error


def _check_replay(config: AtariConfig) -> None:
  # Before the first gradient step, n transitions of each emulator are not yet
  # whole.
  needed = config.batch_size + config.num_envs * config.n_step
  if config.min_replay < needed:
    refuse(
      config,
      'min_replay',
      f'be at least {needed}: --batch_size='
      f'{config.batch_size}, and --n_step={config.n_step} for each of '
      f'--num_envs={config.num_envs}',
    )
  # In the worst case every other slot ends an episode, and of each emulator's
  # oldest and newest few slots none starts a transition.
  least = max(
    config.min_replay,
    2 * (config.batch_size + config.num_envs * (config.n_step + 4)),
  )
  if config.replay_capacity < least:
    refuse(
      config,
      'replay_capacity',
      f'be at least {least}: --min_replay='
      f'{config.min_replay}, and room for --batch_size='
      f'{config.batch_size}',
    )
  if config.replay_capacity % config.num_envs:
    refuse(
      config,
      'replay_capacity',
      f'be a multiple of --num_envs={config.num_envs}',
    )
  memory.check_replay(
    config,
    HostReplay.estimate_nbytes(config.replay_capacity, (84, 84)),
    devices.memory_bytes(),
  )


def _nbytes(config: AtariConfig, learning: '_Learning') -> float:
  """About how many bytes a run takes."""
  batch = host.batch_shape(
    (4, 84, 84), np.uint8, 0, config.batch_size, config.spr_steps
  )
  iteration = config.env_steps(min(config.iteration_frames, config.frames))
  needed = (
    memory.learning_nbytes(
      learning.learner.regress, learning.shapes(), batch, learning.speeds
    )
    + HostReplay.estimate_nbytes(config.replay_capacity, (84, 84))
    + (config.num_envs + config.eval_envs) * _EMULATOR_NBYTES
    + memory.kept_nbytes(iteration, config.num_envs, numbers=1)
    + 64 * config.eval_episodes
  )
  if config.panel_period:
    needed += config.probe_size / config.batch_size * memory.nbytes(batch)
    # What was expected and five things that came of it.
    needed += 6 * memory.kept_nbytes(
      config.env_steps(config.eval_frames), config.eval_envs, numbers=1
    )
  return needed


def build(
  config: AtariConfig, folder: RunFolder
) -> tuple[host_engine.Parts, dict[str, Any]]:
  """Makes all parts of the run; returns them and what to record of them.

  Raises:
    ValueError: options that do not go together.
  """
  learning = _make_learning(config)
  learner_, speeds = learning.learner, learning.speeds
  memory.check(
    config,
    lambda other: _nbytes(
      other, learning if other is config else _make_learning(other)
    ),
    'replay_capacity',
    devices.memory_bytes(),
  )
  init_key, act_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
  state = learner_.init(init_key)
  watch = _make_watch(config, learning)
  replay = HostReplay(
    config.replay_capacity,
    frame_shape=(84, 84),
    num_envs=config.num_envs,
    n_step=config.n_step,
    discount=config.discount,
    sequence_steps=config.spr_steps,
  )
  loop = host.LoopConfig(
    schedule=speeds,
    total_env_steps=config.env_steps(config.frames),
    iteration_env_steps=config.env_steps(config.iteration_frames),
    warmup_env_steps=config.min_replay,
    batch_size=config.batch_size,
    epsilon=functools.partial(
      schedule.linear_epsilon,
      start=config.epsilon_start,
      end=config.epsilon_end,
      begin=config.epsilon_hold,
      decay=config.epsilon_decay,
    ),
    reward_clip=config.reward_clip or None,
    life_loss_terminates=config.life_loss_terminates,
    overlapped=config.acting == 'overlapped',
  )
  train = functools.partial(
    host.train,
    loop,
    learner=learner_,
    replay=replay,
    make_environments=functools.partial(_environments, config),
    seed=config.seed,
    act_key=act_key,
    watch=watch,
  )
  parts = host_engine.Parts(
    state=state,
    seen=watch.start(
      state, (4, 84, 84), np.uint8, sequence_steps=config.spr_steps
    )
    if watch
    else None,
    replay=replay,
    config=loop,
    loop=train,
    evaluate=functools.partial(
      _evaluate, config, loop, folder, learner_.agent, eval_key
    )
    if config.evaluates
    else None,
    draw=functools.partial(_draw, config, folder),
    frames_per_env_step=config.frame_skip,
    num_envs=config.num_envs,
    seed=config.seed,
    checkpoint_period_s=config.checkpoint_period_s,
    fresh_environments=config.fresh_environments,
  )
  return parts, {
    'schedule': speeds._asdict()
    | {'sync': learning.twin.sync, 'offset': learning.twin.offset},
    'parameters': sum(x.size for x in jax.tree.leaves(state.online_params)),
  }


class _Learning(NamedTuple):
  """What learns.

  Attributes:
    network: observations -> values.
    twin: the twin by its name.
    learner: all that learning takes.
    speeds: of collecting and learning.
  """

  network: QNetwork
  twin: TwinSpec
  learner: Learner
  speeds: Schedule

  def shapes(self) -> TrainState:
    """Those of the learner's state."""
    return jax.eval_shape(self.learner.init, jax.random.key(0))


def _make_learning(config: AtariConfig) -> _Learning:
  """What the options describe; nothing is computed."""
  network, agent = make_agent(config)
  units = _units(config)
  learnt_from = config.env_steps(config.frames) - config.min_replay
  gradient_steps = max(1, units.gradient_steps_of(learnt_from))
  twin = twin_options.make_spec(
    config, units, gradient_steps, config.min_replay
  )
  optimizer = learner.make_optimizer(
    config.optimizer,
    learning_rate=config.learning_rate,
    eps=config.optimizer_eps,
    decay=config.rmsprop_decay,
    anneal_steps=gradient_steps if config.anneal_learning_rate else None,
    max_gradient_norm=config.max_gradient_norm or None,
  )
  speeds = schedule.make_schedule(
    config.num_envs, config.train_period, train_steps=config.train_steps
  )
  made = learner.make_learner(agent, optimizer, twin.make())
  return _Learning(network, twin, made, speeds)


def _units(config: AtariConfig) -> twin_options.Speeds:
  """What converts periods."""
  return twin_options.Speeds(
    config.target_period_unit,
    config.train_period,
    config.frame_skip,
    config.train_steps,
  )


def _make_watch(config: AtariConfig, learning: _Learning) -> host.Watch | None:
  """The twin's panel, if it is asked for."""

  def age() -> float:
    age = twin_options.mean_age(config, _units(config), learning.twin)
    steps = learning.speeds.regress
    if steps > min(diagnostics.STRIDE, 2 * age + 1):
      refuse(
        config,
        'shadows',
        f'not be given where a round takes {steps} gradient steps: they move '
        'once a round',
      )
    return age

  panel_ = panel_options.make_panel(
    config,
    learning.learner,
    age=age,
    network=latent_options.looked_at(config, learning.network),
    discount=config.discount,
  )
  if panel_ is None:
    return None
  return host.Watch(panel_, config.panel_period, config.probe_size)


def make_agent(config: AtariConfig) -> tuple[QNetwork, Agent]:
  """The network and the agent that the options describe."""
  with contextlib.closing(_environments(config, seed=0, num_envs=1)) as looked:
    num_actions = looked.num_actions
  network = nature_network(
    num_actions,
    hidden_units=config.hidden_units,
    head=config.head,
    padding=config.padding,
    initializer=config.initializer,
    layer_norm=config.layer_norm,
    renormalise=config.renormalise,
  )
  example = np.zeros((1, 4, 84, 84), np.uint8)
  values = target_options.parameters(config)
  agent = latent_options.make_agent(
    config,
    network,
    target_options.make_agent(config, network, example, values),
    example,
    config.spr_weight,
    inside_loop=False,
  )
  if config.augmentation != 'none':
    agent = latent.with_augmentation(
      agent, augment.of_frames(_AUGMENT[config.augmentation])
    )
  return network, agent


def _environments(
  config: AtariConfig,
  seed: int,
  *,
  num_envs: int | None = None,
  colour: bool = False,
) -> AtariEnvironments:
  protocol = AtariProtocol(
    sticky_action_probability=config.sticky_action_probability,
    noop_max=config.noop_max,
    frame_skip=config.frame_skip,
    frame_cap=config.frame_cap,
    full_action_set=config.full_action_set,
    fire_on_reset=config.fire_on_reset,
  )
  return AtariEnvironments(
    config.game,
    num_envs or config.num_envs,
    seed=seed,
    protocol=protocol,
    colour=colour,
  )


def _evaluate(
  config: AtariConfig,
  loop: host.LoopConfig,
  folder: RunFolder,
  agent: Agent,
  key: jax.Array,
  params: Params,
  iteration: int,
) -> Generator[None, None, dict[str, float]]:
  """Yields while it plays; returns the evaluation's columns."""
  begun = time.perf_counter()
  seed = host.environment_seed(config.seed, iteration, evaluation=True)
  make = functools.partial(
    _environments, config, seed, num_envs=config.eval_envs
  )
  with contextlib.ExitStack() as stack:
    environments = stack.enter_context(contextlib.closing(make()))
    film = None
    if config.video:
      film = _Film(stack.enter_context(contextlib.closing(make(colour=True))))
    result = None
    for current in evaluation.evaluate(
      host.make_act(agent),
      params,
      environments,
      jax.random.fold_in(key, iteration),
      config.eval_epsilon,
      episodes=config.eval_episodes,
      env_steps=config.env_steps(config.eval_frames),
      watch=film.watch if film else None,
      values=host.make_values(agent) if config.panel_period else None,
    ):
      result = current
      yield
    assert result is not None
  if film:
    path = folder.videos / f'iteration_{iteration:04}.gif'
    running.draw(
      folder.videos, lambda: film.write(path, fps=60 / config.frame_skip)
    )
  score = float(np.mean(result.returns)) if result.returns else float('nan')
  bias = {}
  if result.record is not None:
    bias = host.overestimation(loop, result.record, config.discount)
  return bias | {
    'eval_episodes': len(result.returns),
    'eval_return': score,
    'eval_human_normalised': human_normalised(config.game, score),
    'eval_frames': result.env_steps * config.frame_skip,
    'eval_s': time.perf_counter() - begun,
  }


class _Film:
  """Records the first episode of the first emulator, in colour.

  A second set of emulators with the same seed, fed the same actions, plays the
  same episodes; the one that the agent sees is grey and small.
  """

  _MOST = 1_800  # frames; two minutes of play at 4 emulator frames a step

  def __init__(self, environments: AtariEnvironments):
    self._environments = environments
    self._frames = [environments.reset()[0, -1]]
    self._running = True

  def watch(self, actions: np.ndarray) -> None:
    """Plays on by one action of each emulator."""
    if not self._running:
      return
    self._environments.send(actions)
    step = self._environments.recv()
    self._frames.append(step.final_obs[0, -1])
    ended = step.terminated[0] or step.truncated[0]
    self._running = not ended and len(self._frames) < self._MOST

  def write(self, path: pathlib.Path, fps: float) -> None:
    """Writes what was recorded, at the speed of play or what a GIF can do."""
    path.parent.mkdir(exist_ok=True)
    write_gif(path, np.stack(self._frames), fps=min(fps, 50))


def _draw(config: AtariConfig, folder: RunFolder) -> None:
  # Without Matplotlib there is no curve: metrics.csv says the same.
  if running.can_draw():
    plot_run(
      folder.metrics,
      folder.curve,
      title=f'{config.game}, {config.agent}, seed {config.seed}',
    )
    table = read_metrics(folder.metrics)
    if panel.is_measured(table):
      panel.plot_panel(
        folder.path / 'curve-panel.png',
        table,
        x='frames',
        title=f'{config.game}, {config.target_update}, seed {config.seed}',
        bound=config.reward_bound / (1 - config.discount)
        if config.discount < 1
        else None,
      )


if __name__ == '__main__':
  run(AtariConfig, __doc__, main)
