"""The option of the churn term, and the batches that it asks for."""

import dataclasses
from typing import Any

from experiments.config.declaring import (
  NOT_NEGATIVE,
  both,
  given,
  group,
  not_given,
  option,
)

_CAN_COMPARE = both(
  # These rules put other networks in place of those that learned.
  not_given('target_update', 'chain', 'gradient_chain', 'iterated_heads'),
  given('replay', 'uniform'),
)


@dataclasses.dataclass(frozen=True)
class ChurnOptions:
  """The option of the churn term."""

  _churn: Any = group('Churn')
  churn_weight: float = option(
    0.0,
    "Weight of CHAIN's term in the loss: the mean squared change, since before "
    'the last gradient step, of the values of a second batch, which is drawn '
    'with the first; 0 for no term.',
    NOT_NEGATIVE,
    when=_CAN_COMPARE,
    refused=True,
  )


def drawn(config: Any) -> int:
  """The number of transitions drawn per gradient step."""
  # Only launchers of Q-learning that draw from a replay have the option.
  return config.batch_size * (2 if getattr(config, 'churn_weight', 0) else 1)


def drawn_text(config: Any) -> str:
  """The flags behind `drawn`, for messages."""
  twice = drawn(config) > config.batch_size
  text = f'--batch_size={config.batch_size}'
  return text + (' and as many for --churn_weight' if twice else '')
