"""A user's file with the rule of a twin that is drawn anew.

  python -m experiments.offline --user_file=experiments/studies/redrawing.py \\
      --target_update=redrawn --target_init=fresh --target_period=10000
"""

import jax

from siamrl import twins
from siamrl.types import Params, Twin


def redrawn() -> Twin:
  """The twin's weights change places within each array, at random.

  Where the weights of an array are drawn independently from one distribution,
  which all initializers do but for orthogonal ones, the twin is then another
  draw from it. Its targets have nothing to do with the network, and are drawn
  anew like the labels that Sokar et al. (2023) shuffle.
  """

  def update(online: Params, target: Params, gradient_steps: jax.Array):
    leaves, structure = jax.tree.flatten(target)
    keys = jax.random.split(
      jax.random.fold_in(jax.random.key(0), gradient_steps), len(leaves)
    )
    return jax.tree.unflatten(
      structure,
      [
        jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
      ],
    )

  return Twin(update, twins.born)


twins.register(
  'redrawn', redrawn, 'its weights change places, every --target_period'
)
