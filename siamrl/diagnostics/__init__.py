"""The effects of the twin on learning: pure functions, for a probe batch.

Everything here can be jitted and vmapped, and branches on no value. A `Panel`
bundles the measurements for a runner, host or compiled: the runner calls `init`
once, `follow` after gradient steps (only if `Panel.follows`), and `measure`
whenever it wants a row.

To fit every rule, nothing assumes target parameters: a twin is measured through
`Twin.params` (in the structure of the online parameters), `Agent.bootstrap`
(whose answers targets are made of, and `Agent.expected` reads as values) and a
lifted agent's loss (the gradient).
"""

from siamrl.diagnostics.age import Clock, make_clock
from siamrl.diagnostics.distances import (
  disagreement,
  functional_distance,
  parameter_distance,
)
from siamrl.diagnostics.features import (
  dormancy,
  dormant_fraction,
  dormant_overlap,
  effective_rank,
  singular_values,
  srank,
)
from siamrl.diagnostics.panel import (
  Look,
  Panel,
  PanelState,
  make_panel,
  panel_share,
)
from siamrl.diagnostics.shadows import (
  SHADOWS,
  STRIDE,
  counterfactuals,
  gradient_cosine,
  matched_shadows,
  shadows_follow,
  shadows_init,
  strided_soft,
)
from siamrl.diagnostics.targets import TDSplit, churn, target_drift, td_split
from siamrl.diagnostics.values import (
  bias_exact,
  monte_carlo,
  overestimation,
  soft_divergence,
)

__all__ = [
  'Clock',
  'Look',
  'Panel',
  'PanelState',
  'SHADOWS',
  'STRIDE',
  'TDSplit',
  'bias_exact',
  'churn',
  'counterfactuals',
  'disagreement',
  'dormancy',
  'dormant_fraction',
  'dormant_overlap',
  'effective_rank',
  'functional_distance',
  'gradient_cosine',
  'make_clock',
  'make_panel',
  'matched_shadows',
  'monte_carlo',
  'overestimation',
  'panel_share',
  'parameter_distance',
  'shadows_follow',
  'shadows_init',
  'singular_values',
  'soft_divergence',
  'srank',
  'strided_soft',
  'target_drift',
  'td_split',
]
