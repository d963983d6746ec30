"""Rules by name, with the parameters that they take."""

from collections.abc import Callable, Mapping
import math
import re
from typing import Any, NamedTuple

import chex
import jax

from siamrl import parameters
from siamrl.parameters import Domain, FieldError, Parameter, check_name
from siamrl.twins.moving import (
  by_path,
  frozen,
  hard,
  hard_geometric,
  hard_random,
  hard_scheduled,
  periodic,
  projected_soft,
  soft,
  soft_cosine,
  soft_linear,
  t_soft,
)
from siamrl.twins.several import averaged, chain, gradient_chain, iterated_heads
from siamrl.twins.using import functional, proximal, residual, self_copy
from siamrl.types import Twin

# Gradient steps that no run reaches, the largest int32.
NEVER = 2**31 - 1


class Rule(NamedTuple):
  """A rule as a launcher offers it.

  Attributes:
    make: builds the rule, from the parameters in `takes` as keywords.
    takes: names of `PARAMETERS`, without defaults; `make` gets all of them.
    period: gradient steps from one application to the next; None if users
      choose the period.
    summary: phrase for a help text that says what the rule does.
    is_periodic: whether it does the same in every period. Rules that take
      `target_schedule_steps` do not in any case.
  """

  make: Callable[..., Twin]
  takes: tuple[str, ...]
  period: int | None
  summary: str
  is_periodic: bool = True


RULES: dict[str, Rule] = {
  'hard': Rule(hard, (), None, 'a copy of the online network every period'),
  'soft': Rule(
    soft,
    ('tau',),
    1,
    'a fraction tau toward the online network at every gradient step',
  ),
  'periodic_soft': Rule(
    soft,
    ('tau',),
    None,
    'a fraction tau toward the online network every period',
  ),
  'soft_cosine': Rule(
    soft_cosine,
    ('tau', 'target_schedule_steps'),
    1,
    'soft, tau falling to 0 along a cosine (BYOL)',
  ),
  'soft_linear': Rule(
    soft_linear,
    ('tau', 'tau_end', 'target_schedule_steps'),
    1,
    'soft, tau changing to tau_end',
  ),
  't_soft': Rule(
    t_soft,
    ('tau', 'degrees_of_freedom'),
    1,
    'soft, slower where the online network is unusually far away (t-soft)',
  ),
  'hard_scheduled': Rule(
    hard_scheduled,
    ('target_period', 'target_period_end', 'target_schedule_steps'),
    1,
    'hard, the period changing to target_period_end',
  ),
  'hard_geometric': Rule(
    hard_geometric,
    ('target_period', 'target_period_growth'),
    1,
    'hard, the period growing by target_period_growth at each copy',
    is_periodic=False,
  ),
  'hard_random': Rule(
    hard_random,
    ('target_period',),
    1,
    'hard, at random gradient steps, every target_period on average (the '
    'lambda-target)',
    is_periodic=False,
  ),
  'frozen': Rule(frozen, (), NEVER, 'the initial network, which never moves'),
  'self': Rule(
    self_copy, (), 1, 'the online network itself, behind a stop-gradient'
  ),
  'residual': Rule(
    residual, (), 1, 'the online network itself, with its gradient (Baird)'
  ),
  'by_path': Rule(
    by_path,
    ('target_paths',),
    1,
    'a separate rule for each part of the network',
  ),
  'averaged': Rule(
    averaged,
    ('target_count',),
    None,
    'the last target_count copies, values averaged (Averaged-DQN)',
  ),
  'chain': Rule(
    chain,
    ('target_count', 'target_period', 'target_sync_period'),
    1,
    'target_count networks, each learning from the one before (i-QN)',
  ),
  'gradient_chain': Rule(
    gradient_chain,
    ('target_count', 'ridge'),
    None,
    'target_count networks in a chain that learn from and for each other '
    '(Gi-TD)',
  ),
  'iterated_heads': Rule(
    iterated_heads,
    ('target_count',),
    None,
    'target_count last layers on a shared network, in a chain (iS-QL)',
  ),
  'functional': Rule(
    functional,
    ('twin_weight',),
    None,
    'self, with values tied to those of a copy (functional regularization)',
  ),
  'proximal': Rule(
    proximal,
    ('twin_weight',),
    None,
    'hard, and parameters are pulled toward the copy (DQN Pro)',
  ),
  'projected_soft': Rule(
    projected_soft,
    ('tau', 'projection_radius', 'ridge'),
    1,
    'soft inside a ball, with a ridge penalty',
  ),
}


def with_period() -> tuple[str, ...]:
  """The names of the rules whose period users choose."""
  return tuple(name for name, rule in RULES.items() if rule.period is None)


# The parameters of all rules. Periods are in gradient steps.
PARAMETERS: dict[str, Parameter] = {
  'tau': Parameter(
    parameters.RATE, 'Weight of the online parameters in a target update'
  ),
  'tau_end': Parameter(
    parameters.FRACTION, 'Value of tau at the end of its schedule'
  ),
  'target_period': Parameter(
    parameters.WHOLE,
    'Time from one target update to the next, in units of target_period_unit',
    int,
    period=True,
  ),
  'target_period_end': Parameter(
    parameters.WHOLE,
    'Value of target_period at the end of its schedule',
    int,
    period=True,
  ),
  'target_period_growth': Parameter(
    Domain(lambda x: 1 <= x < math.inf, 'a finite number from 1 on'),
    'Factor from one target period to the next',
  ),
  'degrees_of_freedom': Parameter(
    Domain(lambda x: x > 0, 'positive'),
    'Degrees of freedom of the distribution that parameters are weighed by; '
    'with fewer, distant ones count less, and with infinitely many (inf) all '
    'count the same',
  ),
  'target_schedule_steps': Parameter(
    parameters.WHOLE,
    'Gradient steps over which tau or target_period changes',
    int,
  ),
  'target_sync_period': Parameter(
    parameters.WHOLE,
    'Time from one copy of the inner twins of a chain to the next',
    int,
    period=True,
  ),
  'target_count': Parameter(
    parameters.WHOLE,
    'Number of copies (averaged), networks (chain, gradient_chain) or '
    'heads (iterated_heads)',
    int,
    traced=False,
  ),
  'target_paths': Parameter(
    Domain(bool, 'such as torso:soft+head:hard'),
    'A rule for each part of the network, chosen by a regular expression that '
    'is found in the paths of its parameters',
    str,
    traced=False,
  ),
  'twin_weight': Parameter(
    parameters.NOT_NEGATIVE,
    'How strongly values (functional) or parameters (proximal) are tied to the '
    'twin',
  ),
  'projection_radius': Parameter(
    parameters.POSITIVE, "Radius of the ball that holds the twin's parameters"
  ),
  'ridge': Parameter(
    parameters.NOT_NEGATIVE,
    'Weight of the ridge penalty in the loss, on all parameters '
    '(projected_soft) or those of the corrections (gradient_chain)',
  ),
}

# Rules that only move parameters, and so may be part of `by_path`.
PARTS = (
  'hard',
  'soft',
  'periodic_soft',
  'soft_cosine',
  'soft_linear',
  'frozen',
  'self',
)


def register(
  name: str,
  make: Callable[..., Twin],
  summary: str,
  *,
  period: int | None = None,
  **new: Parameter,
) -> None:
  """Adds a rule to `RULES`.

  Launchers offer it as --target_update=NAME, with a flag for each parameter
  that it brings.

  Args:
    name: name of the rule.
    make: builds the rule. Its arguments are parameters: those of `PARAMETERS`,
      and its own.
    summary: phrase for a help text that says what the rule does.
    period: gradient steps from one application to the next, 1 for a rule that
      moves at every gradient step; None if users choose the period.
    **new: the rule's own parameters by name.

  Raises:
    ValueError: the name is taken, or a parameter is not described.
  """
  takes = parameters.taken_by(make)
  parameters.add('target_update', name, RULES, takes, PARAMETERS, new)
  RULES[name] = Rule(make, takes, period, summary)


def takes(name: str, target_paths: str | None = None) -> tuple[str, ...]:
  """The parameters that a rule reads, including those of parts of `by_path`.

  Args:
    name: a key of `RULES`.
    target_paths: the parts of `by_path`, see `parse_paths`.

  Raises:
    ValueError: `target_paths` cannot be read.
  """
  names = dict.fromkeys(RULES[name].takes)
  if name == 'by_path' and target_paths:
    for part in parse_paths(target_paths).values():
      has_period = RULES[part].period is None
      names |= dict.fromkeys(('target_period',) if has_period else ())
      names |= dict.fromkeys(RULES[part].takes)
  return tuple(names)


def parse_paths(target_paths: str) -> dict[str, str]:
  """Reads 'torso:soft+head:hard': pattern -> name of a rule.

  Raises:
    ValueError: the string is not of this form, or a rule cannot be a part.
  """
  rules: dict[str, str] = {}
  for part in target_paths.split('+'):
    pattern, colon, rule = part.rpartition(':')
    if not (colon and pattern and rule):
      raise FieldError(
        'target_paths', target_paths, 'must be such as torso:soft+head:hard'
      )
    if rule not in PARTS:
      raise FieldError(
        'target_paths',
        target_paths,
        f': {rule!r} must be one of {", ".join(PARTS)}',
      )
    try:
      re.compile(pattern)
    except re.error as error:
      raise FieldError(
        'target_paths',
        target_paths,
        f': {pattern!r} is not a regular expression: {error}',
      ) from error
    if pattern in rules:
      raise FieldError(
        'target_paths', target_paths, f'must not name {pattern!r} twice'
      )
    rules[pattern] = rule
  return rules


def make_rule(name: str, **given: Any) -> Twin:
  """Builds the rule that `RULES` holds under `name`.

  Args:
    name: a key of `RULES`.
    **given: parameters by the names of `PARAMETERS`; None counts as not given.
      Only rules with their own clock read `target_period`; others ignore it.

  Raises:
    ValueError: the name is unknown, or a parameter is missing, superfluous or
      (unless it is a tracer) outside its domain.
  """
  check_name('target_update', name, RULES)
  values = parameters.check(
    'target_update',
    name,
    takes(name, given.get('target_paths')),
    given,
    PARAMETERS,
    ignored=('target_period',),
  )
  if name == 'proximal' and not _below_one(values['twin_weight']):
    raise FieldError(
      'twin_weight',
      values['twin_weight'],
      'must be below 1 for',
      ('target_update', 'proximal'),
    )
  if name == 'by_path':
    rules = parse_paths(values['target_paths'])
    return by_path({at: _part(rule, values) for at, rule in rules.items()})
  return RULES[name].make(**values)


def _below_one(value: chex.Numeric) -> bool:
  return isinstance(value, jax.core.Tracer) or bool(value < 1)


def _part(name: str, given: Mapping[str, Any]) -> Twin:
  """Builds a rule that is part of another, with its own clock."""
  if name == 'self':
    return hard()  # at every gradient step
  rule = RULES[name].make(**{key: given[key] for key in RULES[name].takes})
  if RULES[name].period is None:
    return periodic(given['target_period'], rule)
  return rule
