"""Figure of representation learning: small multiples of loss and quality."""

from siamrl.report.metrics import Table
from siamrl.report.panel import Facet, known_facets

# Labels by column of metrics that sum up a run, the preferred one first.
HEADLINES = {
  'knn_encoder': 'accuracy by neighbors',
  'normalized_std': 'normalized std',
}


def is_representation(table: Table) -> bool:
  """Returns whether runs learned representations."""
  return any(name in table for name in HEADLINES)


def headline(table: Table) -> str:
  """Returns the column that sums up a run."""
  return next(name for name in HEADLINES if name in table)


def facets(table: Table) -> list[Facet]:
  """Returns the small multiples for which runs have numbers.

  Args:
    table: [R] arrays by column.
  """
  accuracy = 'accuracy on held-out images'
  names = {'encoder': 'features', 'projection': 'projections'}
  return known_facets(
    [
      Facet('Loss', 'mean over the gradient steps', {'loss': ''}),
      Facet(
        'Normalized std',
        r'$\sqrt{d}$ mean std of $z / \|z\|$: 0 collapsed, 1 even',
        {'normalized_std': ''},
      ),
      Facet(
        'Effective rank of projections', 'dimensions', {'effective_rank': ''}
      ),
      Facet(
        'Effective rank of features',
        'dimensions',
        {'encoder_effective_rank': ''},
      ),
      *(
        Facet(f'{judge} by {of}', accuracy, {f'{short}_{part}': ''})
        for short, judge in (('knn', 'Neighbors'), ('probe', 'Linear probe'))
        for part, of in names.items()
      ),
    ],
    table,
  )
