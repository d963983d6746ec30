"""The effects of the twin on learning: pure functions, for a probe batch.

Everything here can be jitted and vmapped, and branches on no value. A `Panel`
bundles the measurements for a runner, host or compiled: it calls `init` once,
`follow` after gradient steps (only where `Panel.follows`), and `measure`
wherever it wants a row.

Nothing says "theta_bar": a twin is looked at through `Twin.params` (parameters
beside the online ones), `Agent.bootstrap` (what targets are made of, which
`Agent.expected` reads as values) and a lifted agent's loss (the gradient), and
so every rule fits.
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
