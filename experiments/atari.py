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

import dataclasses
from typing import Any, NoReturn

from experiments.config import (
  executing,
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
  choice,
  group,
  one_of,
  option,
  path_option,
  usage_errors,
)
from experiments.engines import devices, host, host_runs
from experiments.families import q
from experiments.suites import ale
from experiments.suites.ale import AUGMENTATIONS, MOST_EMULATORS
from siamrl.report.run_folder import RunFolder


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
    most=MOST_EMULATORS,
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
    1, 'Emulators stepped in parallel', POSITIVE, most=MOST_EMULATORS
  )
  video: bool = option(
    False, 'Record the first episode of each evaluation as a GIF.'
  )

  @property
  def evaluates(self) -> bool:
    """Whether there is an evaluation."""
    return self.eval_frames > 0 or self.eval_episodes > 0

  @property
  def total_env_steps(self) -> int:
    """Env steps of the whole run."""
    return self.frames // self.frame_skip

  @property
  def iteration_env_steps(self) -> int:
    """Env steps from one row of metrics to the next."""
    return self.iteration_frames // self.frame_skip


def main(config: AtariConfig) -> None:
  """Trains an agent as the options say."""
  game = ale.find_game(config.game)
  run_dir = config.run_dir or f'runs/{game}-{config.agent}-{config.seed}'
  config = dataclasses.replace(config, game=game, run_dir=run_dir)
  ale.check(config)
  q.check_host(config, length='frames')
  with devices.StopRequest() as stop:
    suite = ale.Suite(config)
    host_runs.check_replay(config, suite)
    devices.configure(config.platform)
    host_runs.train(config, q, suite, stop, drop)


def build(
  config: AtariConfig, folder: RunFolder
) -> tuple[host.Parts, dict[str, Any]]:
  """Makes all parts of a run, see `host_runs.build`."""
  return host_runs.build(config, q, ale.Suite(config), folder)


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


def run() -> NoReturn:
  """Does what the command line says, and exits."""
  executing.run(AtariConfig, __doc__, main)


if __name__ == '__main__':
  run()
