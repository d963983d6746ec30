"""The options of resets."""

import dataclasses
from typing import Any

import optax

from experiments.config.declaring import (
  FRACTION,
  NOT_NEGATIVE,
  both,
  choice,
  group,
  is_set,
  not_given,
  option,
)
from siamrl import resets
from siamrl.learner import Learner

_RESETS = is_set('reset_period', '1 or more')


@dataclasses.dataclass(frozen=True)
class ResetOptions:
  """The options of resets."""

  _resets: Any = group('Resets')
  reset_period: int = option(
    0,
    'Gradient steps from one reset of the network to the next; 0 for no '
    'resets. The optimizer restarts with it.',
    NOT_NEGATIVE,
  )
  reset_shrink: float = option(
    0.5,
    "Share of the torso's weights that a reset leaves in place, as in "
    'shrink-and-perturb; the rest is drawn anew, like the whole head. 1 resets '
    'the head only.',
    FRACTION,
    when=_RESETS,
    refused=True,
  )
  reset_until: int = option(
    0,
    'Gradient steps after which there are no more resets; 0 for no end.',
    NOT_NEGATIVE,
    when=_RESETS,
    refused=True,
  )
  reset_twin: str = choice(
    'reset',
    'Fate of the twin at a reset.',
    {
      'reset': 'reset like the online network, with weights of its own',
      'copy': 'a copy of the network that was reset',
      'keep': 'left alone, so that it teaches the network that was reset',
    },
    when=both(_RESETS, not_given('target_update', 'self', 'residual')),
    refused=True,
  )


def with_resets(
  config: Any, learner: Learner, optimizer: optax.GradientTransformation
) -> Learner:
  """The learner, with the resets that the options ask for."""
  if not config.reset_period:
    return learner
  return resets.with_resets(
    learner,
    optimizer,
    resets.Resets(
      config.reset_period,
      config.reset_shrink,
      config.reset_until,
      config.reset_twin,
    ),
  )
