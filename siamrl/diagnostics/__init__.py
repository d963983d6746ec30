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
from siamrl.diagnostics.agreeing import CHOICES, agreeing
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
  feature_metrics,
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
  shortest_period,
  split_shadow,
  strided_soft,
)
from siamrl.diagnostics.targets import TDSplit, churn, target_drift, td_split
from siamrl.diagnostics.values import (
  KnownValues,
  bias_exact,
  gradient_toward,
  known_values,
  monte_carlo,
  overestimation,
  soft_divergence,
)

__all__ = [
  'CHOICES',
  'Clock',
  'KnownValues',
  'Look',
  'Panel',
  'PanelState',
  'SHADOWS',
  'STRIDE',
  'TDSplit',
  'agreeing',
  'bias_exact',
  'churn',
  'counterfactuals',
  'disagreement',
  'dormancy',
  'dormant_fraction',
  'dormant_overlap',
  'effective_rank',
  'feature_metrics',
  'functional_distance',
  'gradient_cosine',
  'gradient_toward',
  'known_values',
  'make_clock',
  'make_panel',
  'matched_shadows',
  'monte_carlo',
  'overestimation',
  'panel_share',
  'parameter_distance',
  'shadows_follow',
  'shadows_init',
  'shortest_period',
  'singular_values',
  'soft_divergence',
  'split_shadow',
  'srank',
  'strided_soft',
  'target_drift',
  'td_split',
]
