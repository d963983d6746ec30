"""The options of the twin's panel, the same for all launchers."""

from collections.abc import Callable
import dataclasses
from typing import Any

import chex
from flax import linen as nn

from experiments.config.declaring import (
  Bound,
  NOT_NEGATIVE,
  POSITIVE,
  group,
  is_set,
  option,
  refuse,
)
from siamrl import diagnostics
from siamrl.diagnostics import SHADOWS, STRIDE, KnownValues, Panel
from siamrl.learner import Learner
from siamrl.networks.activations import activations


def _are_shadows(text: str) -> bool:
  names = text.split('+')
  try:
    for name in names:
      diagnostics.split_shadow(name)
  except ValueError:
    return False
  return len(set(names)) == len(names)


_SHADOWS = Bound(
  _are_shadows,
  f'one or several of {", ".join(SHADOWS)}, hard:PERIOD and soft:RATE, joined '
  'by +',
)

MEASURES = is_set('panel_period', '1 or more')


@dataclasses.dataclass(frozen=True)
class PanelOptions:
  """The options of the panel, which launchers inherit."""

  _panel: Any = group("The twin's panel")
  panel_period: int = option(
    0,
    'Iterations from one measurement of what the twin does to the next; 0 '
    'for none. They become the columns panel/... of metrics.csv.',
    NOT_NEGATIVE,
    single=True,
    common=True,
  )
  probe_size: int = option(
    256,
    'Transitions that the panel measures on, drawn in the first iteration '
    'and kept. Ranks are at most this large.',
    POSITIVE,
    single=True,
    when=MEASURES,
  )
  shadows: str | None = option(
    None,
    'Rules to compare with the one in use, such as self+soft: their targets '
    'and gradients are computed, too. Shadows are born equal, move after '
    'gradient steps, and are about as old as the twin, or as a hard copy with '
    f'--target_period if it has no age; but soft moves every {STRIDE} gradient '
    f'steps, so that it is at least {(STRIDE - 1) / 2:g} old. hard:PERIOD and '
    'soft:RATE are rules of this period or rate, per gradient step',
    _SHADOWS,
    single=True,
    when=MEASURES,
    refused=True,
  )
  reward_bound: float = option(
    1.0,
    'Largest absolute reward after scaling and clipping. Values above '
    'reward_bound / (1 - discount) count as soft divergence.',
    POSITIVE,
    single=True,
    when=MEASURES,
  )


def check(
  config: PanelOptions,
  *,
  iteration_env_steps: int,
  capacity: int,
  unready: int,
) -> None:
  """Raises UsageError for a panel that cannot be made.

  Args:
    config: the options.
    iteration_env_steps: env steps of the first iteration; the probe is drawn
      after 60 % of them.
    capacity: transitions that the replay can hold.
    unready: transitions whose rewards are not yet complete.
  """
  if not config.panel_period:
    return
  most = min(int(0.6 * iteration_env_steps), capacity) - unready
  if config.probe_size > most:
    refuse(
      config,
      'probe_size',
      f'be at most {most}, the transitions that there are when it is drawn, in '
      'the first iteration',
    )


def make_panel(
  config: PanelOptions,
  learner: Learner,
  *,
  age: Callable[[], chex.Numeric],
  network: nn.Module | None = None,
  discount: chex.Numeric | None = None,
  known: KnownValues | None = None,
) -> Panel | None:
  """The panel that the options describe, if they ask for one.

  Args:
    config: the options.
    learner: the run's.
    age: -> gradient steps that its twin is old on average, for shadows.
    network: the base agent's network, to look into; None for no such columns.
    discount: per env step, of values that are bound by `reward_bound`.
    known: returns the values that should be learned, to compare gradients with.

  Raises:
    UsageError: the rule in use cannot be compared with others.
  """
  if not config.panel_period:
    return None
  shadows = {}
  if config.shadows:
    if learner.clocked.twin.shift is not None:
      refuse(
        config, 'shadows', 'not be given with a rule that has several networks'
      )
    shadows = diagnostics.matched_shadows(config.shadows.split('+'), age())

  look = None
  if network is not None:
    # Of two critics, the one that acts.
    look = lambda params, obs: activations(
      network, params.get('critic_0', params), obs
    )
  return diagnostics.make_panel(
    learner,
    look=look,
    reward_bound=config.reward_bound,
    discount=discount,
    shadows=shadows,
    known=known,
  )
