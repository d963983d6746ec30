"""Distances between a network and its twin."""

import chex
import jax
import jax.numpy as jnp

from siamrl.types import Params


def leaves_by_layer(tree: Params) -> dict[str, list[chex.Array]]:
  """Leaves by layer, the first two modules on their path: 'torso/Conv_0'.

  A prefix before Flax's 'params', such as the name of one of several networks,
  is kept. A leaf outside all modules is a layer by itself.
  """
  found: dict[str, list[chex.Array]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    text = jax.tree_util.keystr(path, simple=True, separator='/')
    before, _, within = f'/{text}'.rpartition('/params/')
    *modules, name = within.strip('/').split('/')
    layer = [*before.strip('/').split('/'), *modules[:2]]
    found.setdefault('/'.join(filter(None, layer)) or name, []).append(leaf)
  return found


def parameter_distance(
  online: Params, twin: Params
) -> tuple[chex.Array, dict[str, chex.Array]]:
  """||theta - theta_bar||_2 / ||theta||_2, for the network and each layer.

  Args:
    online: theta.
    twin: theta_bar in the same structure, from `Twin.params`.

  Returns:
    (of all parameters [], of each layer []); 0 if the two are equal, inf if
    theta = 0 and theta_bar is not.
  """

  def squares(tree: Params) -> dict[str, chex.Array]:
    return {
      name: sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in group)
      for name, group in leaves_by_layer(tree).items()
    }

  def relative(gap: chex.Array, size: chex.Array) -> chex.Array:
    # `where` discards a quotient 0 / 0, but keeps NaN.
    return jnp.where(gap == 0, 0.0, jnp.sqrt(gap / size))

  gaps = squares(
    jax.tree.map(
      lambda o, t: o.astype(jnp.float32) - t.astype(jnp.float32), online, twin
    )
  )
  sizes = squares(online)
  whole = relative(
    jnp.sum(jnp.stack(list(gaps.values()))),
    jnp.sum(jnp.stack(list(sizes.values()))),
  )
  return whole, {name: relative(gap, sizes[name]) for name, gap in gaps.items()}


def functional_distance(q: chex.Array, q_twin: chex.Array) -> chex.Array:
  """E|Q - Q_bar| over states and actions.

  Args:
    q: [B, A].
    q_twin: [B, A].
  """
  return jnp.mean(jnp.abs(q - q_twin))


def disagreement(actions: chex.Array, others: chex.Array) -> chex.Array:
  """The frequency, or for continuous actions the size, of differences.

  E 1[a != a'], or E |a - a'| over observations and dimensions. For the greedy
  actions before and after a gradient step it is the policy churn of Schaul et
  al. (2022).

  Args:
    actions: int [B], or float [B, D].
    others: the actions of another policy, like `actions`.
  """
  if jnp.issubdtype(actions.dtype, jnp.floating):
    return jnp.mean(jnp.abs(actions - others))
  return jnp.mean(actions != others)
