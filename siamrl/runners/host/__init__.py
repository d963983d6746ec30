"""The host loop: environments outside JAX, a replay in host memory.

One round collects `Schedule.collect` env steps and takes `Schedule.regress`
gradient steps, in one of two orders. Neither depends on timing:

* exact: act, send, act, send, ... The gradient steps are dispatched after the
  last action of the round is sent, so that emulators and learner work at the
  same time; the next action waits for both. Every action comes from the newest
  parameters. The batch cannot hold the one transition in flight. If that is the
  round's only one, batches are drawn and everything is dispatched while the
  gradient steps of the previous round are running.
* overlapped: the gradient steps are dispatched with the round's first action,
  and the whole round acts with the parameters from before them, which are one
  round old. Devices run programs in order, so that the environments take the
  round's first step during the gradient steps. If a round is one step of each
  parallel environment, both orders are the same.

Without a replay, a round is learned from in whole epochs, toward targets from
before them. Its gradient steps need all of its outcomes, so that emulators and
learner take turns.

In either order, a replay that reads the metrics of gradient steps gets them
between two rounds, after waiting for the gradient steps of the previous one. So
the results of a run do not depend on where it is stopped and resumed.

Runs are split into iterations. Each begins with fresh environments, seeded by
the run's seed and the iteration's number (as in DQN Zoo), because the state of
emulators cannot be saved. The actions since the iteration's start are kept:
replayed in fresh environments they lead back to the same point, so that a run
can be stopped and resumed between any two rounds.
"""

from siamrl.runners.errors import NonFiniteError
from siamrl.runners.host.batches import batch_shape, round_shape
from siamrl.runners.host.config import LoopConfig
from siamrl.runners.host.epochs import make_epochs
from siamrl.runners.host.evaluating import (
  make_act,
  make_values,
  overestimation,
)
from siamrl.runners.host.loop import EnvironmentsChangedError, Progress, train
from siamrl.runners.host.seeding import environment_seed
from siamrl.runners.host.state import TIMERS, LoopState, Statistics
from siamrl.runners.host.watching import Seen, Watch

__all__ = [
  'TIMERS',
  'EnvironmentsChangedError',
  'LoopConfig',
  'LoopState',
  'NonFiniteError',
  'Progress',
  'Seen',
  'Statistics',
  'Watch',
  'batch_shape',
  'environment_seed',
  'make_act',
  'make_epochs',
  'make_values',
  'overestimation',
  'round_shape',
  'train',
]
