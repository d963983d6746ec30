"""The rule of the study twin_agreement, registered as users register theirs.

It knows what should be learned, and so is offered by no launcher unless asked
to with --user_file=experiments/studies/agreeing.py.
"""

import functools

from siamrl import diagnostics, twins
from siamrl.diagnostics import CHOICES, KnownValues
from siamrl.envs.registry import SOLVED
from siamrl.envs.tabular import optimal_probe
from siamrl.parameters import Domain, Parameter
from siamrl.types import Twin


def are_candidates(text: str) -> bool:
  """Whether a text names rules, those of an age with their numbers."""
  names = text.split('+')
  try:
    found = list(map(diagnostics.split_shadow, names))
  except ValueError:
    return False
  numbered = all(
    number is not None for name, number in found if name in ('hard', 'soft')
  )
  return numbered and len(set(names)) == len(names)


@functools.cache
def _known(name: str, discount: float) -> KnownValues:
  """The optimal values of a problem, without any scale or clip of rewards."""
  make, observe = SOLVED[name]
  return diagnostics.known_values(
    *optimal_probe(make(), discount, observe and observe())
  )


def agreeing(
  candidates: str,
  known_process: str,
  known_discount: float,
  candidate_choice: str,
) -> Twin:
  """`diagnostics.agreeing` among candidates that are given as text."""
  return diagnostics.agreeing(
    diagnostics.matched_shadows(candidates.split('+'), 0),
    _known(known_process, known_discount),
    candidate_choice,
  )


twins.register(
  'agreeing',
  agreeing,
  'at each gradient step the candidate that agrees best with optimal values',
  period=1,
  candidates=Parameter(
    Domain(are_candidates, 'such as hard:16+soft:0.1+self'),
    'Rules to choose from, with periods and rates per gradient step',
    str,
    traced=False,
  ),
  known_process=Parameter(
    Domain(lambda name: name in SOLVED, f'one of {", ".join(SOLVED)}'),
    'Problem whose optimal values are known to the rule',
    str,
    traced=False,
  ),
  known_discount=Parameter(
    Domain(lambda x: 0 <= x < 1, 'in [0, 1)'),
    'Discount of these values',
    traced=False,
  ),
  candidate_choice=Parameter(
    Domain(lambda name: name in CHOICES, f'one of {", ".join(CHOICES)}'),
    'Candidate of each gradient step: '
    + '; '.join(f'{name}: {text}' for name, text in CHOICES.items()),
    str,
    traced=False,
    default='best',
  ),
)
