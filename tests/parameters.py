"""The rules of the twin with parameters, for tests over all of them."""

import pytest

from siamrl import twins

PARAMETERS = dict(
  tau=0.3,
  tau_end=0.1,
  target_period=3,
  target_period_end=6,
  target_period_growth=1.5,
  degrees_of_freedom=1.5,
  target_schedule_steps=40,
  target_sync_period=2,
  target_count=3,
  target_paths='torso:soft+head:hard',
  twin_weight=0.2,
  projection_radius=1e6,
  ridge=1e-3,
)


def taken_by(rule):
  """Those of `PARAMETERS` that a rule takes."""
  takes = twins.takes(rule, PARAMETERS['target_paths'])
  return {name: PARAMETERS[name] for name in takes}


# Rules of each kind: copies, gradients of targets, parts, several copies,
# several networks, and a term in the loss.
OF_EACH_KIND = (
  'hard',
  'residual',
  'by_path',
  'averaged',
  'chain',
  'functional',
)
# Rules that refuse agents which learn other things than values of actions.
OF_VALUES = ('gradient_chain',)


def make_rules(but=()):
  """All rules by name, but for some."""
  names = [name for name in twins.RULES if name not in but]
  return {name: twins.make_rule(name, **taken_by(name)) for name in names}


def slow_but(quick, cases):
  """Cases of a test, tuples or single values, slow except where `quick`."""
  return [
    pytest.param(
      *(case if isinstance(case, tuple) else (case,)),
      marks=() if quick(case) else pytest.mark.slow,
    )
    for case in cases
  ]


def of_each_kind(names):
  """Rules as cases of a test, those but of each kind slow."""
  return slow_but(OF_EACH_KIND.__contains__, names)
