"""Deep Q-learning on Atari 2600 games.

Five minutes of Road Runner, then a published agent on two games with three
seeds each:

  python -m experiments.atari --flagfile=experiments/flagfiles/quickstart.flags
  python -m experiments.atari \\
      --flagfile=experiments/flagfiles/nature_dqn.flags --game=breakout,pong \\
      --seeds=3

Each run keeps its results in a folder: flags, metrics.csv, a curve, TensorBoard
events and checkpoints. A single run has --run_dir itself. Several are done one
after the other, each in a subfolder such as game=pong,seed=0; if one diverges,
the next begins. Ctrl-C or SIGTERM saves and stops. The same command without
--overwrite resumes as if the run had never stopped, after a crash from its last
checkpoint.

The defaults are those of Nature DQN; experiments/flagfiles has other published
agents. Exit codes: 0 if all runs finished or were stopped, 2 for invalid flags,
1 for any other error, 130 after a second Ctrl-C.
"""

import dataclasses
from typing import Any, NoReturn

from experiments.config import learning, executing
from experiments.config.churn import ChurnOptions
from experiments.config.collecting import CollectOptions
from experiments.config.declaring import (
  FRACTION,
  INT64,
  NOT_NEGATIVE,
  POSITIVE,
  When,
  choice,
  group,
  not_given,
  one_of,
  option,
  redeclared,
)
from experiments.config.latent import LatentOptions
from experiments.config.learning import (
  ExplorationOptions,
  LearningOptions,
  NetworkOptions,
)
from experiments.config.panel import PanelOptions
from experiments.config.reading import Sweep
from experiments.config.runs import HostOptions, SeriesOptions
from experiments.config.targets import TargetOptions
from experiments.config.twin import TwinOptions
from experiments.engines import host, host_runs
from experiments.families import q
from experiments.suites import ale
from experiments.config.resets import ResetOptions
from experiments.suites.ale import AUGMENTATIONS, MOST_EMULATORS
from siamrl.report.run_folder import RunFolder


_EVALUATES = When(
  lambda config: config.evaluates,
  'with an evaluation: --eval_frames or --eval_episodes',
)


@dataclasses.dataclass(frozen=True)
class AtariConfig(
  ExplorationOptions,
  q.ReplayOptions,
  LearningOptions,
  NetworkOptions,
  PanelOptions,
  LatentOptions,
  ChurnOptions,
  ResetOptions,
  TargetOptions,
  TwinOptions,
  HostOptions,
  SeriesOptions,
):
  """The options; their defaults are Nature DQN's (Mnih et al. 2015)."""

  optimizer: str = redeclared(LearningOptions, 'optimizer', 'rmsprop_centered')
  optimizer_eps: float = redeclared(LearningOptions, 'optimizer_eps', 0.01)
  td_loss: str = redeclared(LearningOptions, 'td_loss', 'clipped')
  batch_reduction: str = redeclared(LearningOptions, 'batch_reduction', 'sum')
  epsilon_end: float = redeclared(ExplorationOptions, 'epsilon_end', 0.1)
  epsilon_hold: int = redeclared(ExplorationOptions, 'epsilon_hold', 50_000)
  epsilon_decay: int = redeclared(
    ExplorationOptions, 'epsilon_decay', 1_000_000
  )

  _length: Any = group('Length of the run')
  frames: int = option(
    200_000_000,
    'Emulator frames of each run.',
    POSITIVE,
    most=INT64,  # checked in env steps and gradient steps
    common=True,
  )
  iteration_frames: int = option(
    1_000_000,
    'Emulator frames of training per iteration, after which there is a row '
    'of metrics.csv, an evaluation and a checkpoint.',
    POSITIVE,
    most=INT64,
  )
  _protocol: Any = group('The game')
  game: str = option(
    'pong', 'Game in any spelling, like MsPacman.', common=True
  )
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
    'Most no-op frames at the start of an episode',
    NOT_NEGATIVE,
    most=10_000,
  )
  fire_on_reset: bool = option(False, 'Press FIRE to start an episode.')
  frame_skip: int = option(
    4, 'Emulator frames per env step', POSITIVE, most=1_000
  )
  frame_cap: int = option(
    108_000, 'Emulator frames after which an episode is truncated.', POSITIVE
  )
  full_action_set: bool = option(
    False, 'Use all 18 actions rather than those that the game knows.'
  )

  _agent: Any = group('The convolutions, and lives')
  hidden_units: int = option(
    512,
    'Units of the layer after the convolutions; 0 for no such layer.',
    NOT_NEGATIVE,
  )
  padding: str = option(
    'VALID',
    'Padding of the convolutions',
    one_of(('VALID', 'SAME')),
    when=learning.DEFAULT_NETWORK,
  )
  life_loss_terminates: bool = option(
    True, 'End the return at a lost life for learning; the game goes on.'
  )

  _collecting: Any = group('Collecting and learning')
  discount: float = redeclared(CollectOptions, 'discount')
  n_step: int = redeclared(
    CollectOptions, 'n_step', when=not_given('replay', 'none'), refused=True
  )
  reward_clip: float = redeclared(CollectOptions, 'reward_clip', 1.0)
  augmentation: str = choice(
    'none', 'Augmentation of the frames learned from.', AUGMENTATIONS
  )
  batch_size: int = redeclared(CollectOptions, 'batch_size', 32)
  train_period: int = redeclared(CollectOptions, 'train_period', 4)
  train_steps: int = redeclared(CollectOptions, 'train_steps')
  min_replay: int = redeclared(CollectOptions, 'min_replay', 50_000)
  replay_capacity: int = option(
    1_000_000,
    'Transitions in the replay; each takes 7.1 kB of memory as it fills.',
    POSITIVE,
    most=INT64,  # the memory ends sooner
    when=not_given('replay', 'none'),
  )
  acting: str = option(
    'exact',
    'Parameters that act. exact: the newest; the learner works during the '
    'last env step of a round. overlapped: those of one round before; it '
    'works during the first',
    one_of(('exact', 'overlapped')),
    when=not_given('replay', 'none'),
    refused=True,
  )
  _evaluation: Any = group('Evaluation, after each iteration')
  eval_frames: int = option(
    500_000,
    'Frames per evaluation; the episodes that end within them count. 0: see '
    '--eval_episodes.',
    NOT_NEGATIVE,
  )
  eval_episodes: int = option(
    0,
    'Episodes per evaluation if --eval_frames is 0; no evaluation if both '
    'are 0.',
    NOT_NEGATIVE,
    common=True,
  )
  eval_epsilon: float = option(
    0.05, 'Chance of a random action in evaluations.', FRACTION, when=_EVALUATES
  )
  eval_envs: int = option(
    1,
    'Emulators stepped in parallel in evaluations',
    POSITIVE,
    most=MOST_EMULATORS,
    when=_EVALUATES,
  )
  video: bool = option(
    False,
    'Record the first episode of each evaluation as a GIF.',
    when=_EVALUATES,
    refused=True,
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


def main(sweep: Sweep) -> None:
  """Trains the runs one after the other."""
  host_runs.main(_resolved(sweep), q, ale.Suite, check)


def check_sweep(sweep: Sweep) -> None:
  """Raises UsageError or RunError for what is refused before a run begins."""
  host_runs.check_options(_resolved(sweep), check)


def _resolved(sweep: Sweep) -> Sweep:
  """A sweep in which games have the emulator's names."""
  configs = [
    dataclasses.replace(config, game=ale.find_game(config.game))
    for config in sweep.configs
  ]
  return sweep._replace(configs=tuple(configs))


def check(config: AtariConfig) -> None:
  """Raises UsageError for options that do not go together."""
  ale.check(config)
  q.check_host(config, length='frames')


def build(
  config: AtariConfig, folder: RunFolder
) -> tuple[host.Parts, dict[str, Any]]:
  """Makes all parts of a run; see `host_runs.build`."""
  return host_runs.build(config, q, ale.Suite(config), folder)


def run() -> NoReturn:
  """Runs the command line and exits."""
  executing.run(AtariConfig, __doc__, main, lists=True)


if __name__ == '__main__':
  run()
