"""Rules of the twin: what a second network is, how it moves, what it is for.

A rule is a `siamrl.types.Twin`. It says *how* the twin moves; a `ClockedTwin`
says *when*, once every `sync` gradient steps. Rates and periods may be traced
values, so that one compiled program can be vmapped over them.

`tau` always weighs the **online** parameters, as in DDPG, TD3 and SAC (the
`step_size` of `optax.incremental_update`). BYOL's tau, MoCo's m and Polyak's
`decay` weigh the old ones: they are `1 - tau`.

A twin is kept in float32 at least. In bfloat16, whose numbers have 8
significant bits, a soft update with tau = 0.005 would stop half-way.
"""

from siamrl.twins.moving import (
  Dated,
  by_path,
  cosine_rate,
  frozen,
  geometric_period,
  hard,
  hard_geometric,
  hard_random,
  hard_scheduled,
  is_drawn,
  linear_rate,
  periodic,
  projected_soft,
  soft,
  soft_cosine,
  soft_linear,
  soft_scheduled,
  t_soft,
)
from siamrl.twins.registry import (
  NEVER,
  PARAMETERS,
  PARTS,
  RULES,
  with_period,
  Rule,
  make_rule,
  parse_paths,
  register,
  takes,
)
from siamrl.twins.several import averaged, chain, gradient_chain, iterated_heads
from siamrl.twins.trees import born, copy, part, whole
from siamrl.twins.using import functional, proximal, residual, self_copy

__all__ = [
  'Dated',
  'NEVER',
  'PARAMETERS',
  'PARTS',
  'RULES',
  'Rule',
  'averaged',
  'born',
  'by_path',
  'chain',
  'copy',
  'cosine_rate',
  'frozen',
  'functional',
  'geometric_period',
  'gradient_chain',
  'hard',
  'hard_geometric',
  'hard_random',
  'hard_scheduled',
  'is_drawn',
  'iterated_heads',
  'linear_rate',
  'make_rule',
  'parse_paths',
  'part',
  'periodic',
  'with_period',
  'projected_soft',
  'proximal',
  'register',
  'residual',
  'self_copy',
  'soft',
  'soft_cosine',
  'soft_linear',
  'soft_scheduled',
  't_soft',
  'takes',
  'whole',
]
