"""The compiled loop: JAX environments, and the replay on the device.

One call of `Program.advance` is one iteration: many rounds of collecting and
learning and one evaluation, for many runs at once, in one compiled program. The
runs differ by their keys and by their settings (the twin's period and rate, the
learning rate, the discount, ...), which are traced values, so that a whole
ablation compiles once.

A round takes `Schedule.collect` env steps, then `Schedule.regress` gradient
steps, in the host loop's exact order: every action comes from the newest
parameters, and a round learns if at least `warmup_env_steps` were taken before
it began. A batch may hold the newest transition.

The results of a run depend neither on the other runs nor on the number of
devices: every draw uses the run's own key, folded with the number of the round,
and on a CPU each run is computed by itself. (`vectorized` computes them
together, which may change the last bits.)
"""

from siamrl.runners.scan.config import ScanConfig, Settings, Setup
from siamrl.runners.scan.loop import Loop
from siamrl.runners.scan.program import (
  Program,
  Progress,
  compile_ahead,
  make_program,
  train,
)
from siamrl.runners.scan.rows import EARLY_CUT, FAULT
from siamrl.runners.scan.state import RunState

__all__ = [
  'EARLY_CUT',
  'FAULT',
  'Loop',
  'Program',
  'Progress',
  'RunState',
  'ScanConfig',
  'Settings',
  'Setup',
  'compile_ahead',
  'make_program',
  'train',
]
