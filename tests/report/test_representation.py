"""Which small multiples representations have, and what they are worth."""

import numpy as np

from siamrl.report import panel, representation

nan = float('nan')
UNLABELED = {
  'gradient_steps': np.array([5, 10]),
  'loss': np.array([-0.1, -0.5]),
  'normalized_std': np.array([0.9, 0.8]),
  'effective_rank': np.array([3.0, 4.0]),
  'encoder_effective_rank': np.array([30.0, 40.0]),
}
LABELED = UNLABELED | {
  'knn_encoder': np.array([0.5, 0.6]),
  'knn_projection': np.array([0.4, 0.5]),
  'knn_pixels': np.array([0.3, 0.3]),
  'probe_encoder': np.array([nan, nan]),
}


def test_representations_are_known_by_their_columns():
  assert representation.is_representation(UNLABELED)
  assert not representation.is_representation({'train_return': np.zeros(2)})


def test_the_headline_is_the_best_that_there_is():
  assert representation.headline(LABELED) == 'knn_encoder'
  assert representation.headline(UNLABELED) == 'normalized_std'


def test_small_multiples_are_of_what_has_numbers():
  def shown(table):
    return {f.title: [*f.parts] for f in representation.facets(table)}

  collapse = {
    'Loss': ['loss'],
    'Normalized std': ['normalized_std'],
    'Effective rank of projections': ['effective_rank'],
    'Effective rank of features': ['encoder_effective_rank'],
  }
  assert shown(UNLABELED) == collapse
  assert shown(LABELED) == collapse | {
    'Neighbors by features': ['knn_encoder'],
    'Neighbors by projections': ['knn_projection'],
  }


def test_a_panel_speaks_of_what_it_measured():
  """Projections have no return, and continuous actions do not just differ."""
  measured = {
    f'panel/{name}': np.array([0.1, 0.2])
    for name in ('functional_distance', 'target_drift', 'greedy_disagreement')
  }

  def units(table):
    return ' '.join(facet.unit for facet in panel.facets(measured | table))

  assert 'return' in units({}) and 'fraction of states' in units({})
  assert 'return' not in units(UNLABELED)
  assert 'projections' in units(UNLABELED)
  of_actors = units({'actor_loss': np.zeros(2)})
  assert 'return' in of_actors and 'actions' in of_actors
  assert 'fraction' not in of_actors
