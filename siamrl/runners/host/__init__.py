"""The host loop: environments outside JAX, a replay in host memory.

One round collects `Schedule.collect` env steps and takes `Schedule.regress`
gradient steps. Its two orders, both free of any dependence on timing:

* exact: act, send, act, send, ... With the last action of the round on its way
  to the environments, the gradient steps are dispatched, so that emulators and
  learner work at once; the next action waits for both. Every action comes from
  the newest parameters. The batch cannot hold the one transition in flight.
  Where that is the round's only one, the batches are drawn and everything is
  dispatched while the gradient steps of the round before are under way.
* overlapped: the gradient steps are dispatched with the round's first action,
  and the whole round is acted with the parameters from before them: a round
  old. Devices run programs in order, so that it is the round's first step that
  the environments take beside the gradient steps. Where parallel environments
  make a round of one step each, both orders are the same.

A replay that reads what gradient steps report gets it between two rounds, in
either order: it then waits for the gradient steps of the round before. So what
a run computes does not depend on where it is stopped and resumed.

Runs are cut into iterations, and each begins with fresh environments, seeded by
the run's seed and the iteration's number (as in DQN Zoo), because emulators
cannot save themselves. Inside an iteration the actions since its start are
kept: sent to fresh environments they lead back to the same point, so that a run
can be stopped and resumed anywhere between two rounds.
"""

from siamrl.runners.errors import NonFiniteError
from siamrl.runners.host.batches import batch_shape
from siamrl.runners.host.config import LoopConfig
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
  'make_values',
  'overestimation',
  'train',
]
