"""Operations on trees of parameters: copies, parts with a twin, and paths."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from siamrl.types import Agent, Params


def copy(params: Params) -> Params:
  """Copies parameters into new buffers.

  Twins need their own, since one buffer cannot be donated under two names.
  """
  return jax.tree.map(jnp.copy, params)


def born(params: Params) -> Params:
  """The initial twin: a copy of the parameters, in float32 at least."""

  def widen(leaf: chex.Array) -> chex.Array:
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
      return leaf.astype(jnp.float32)
    return jnp.copy(leaf)

  return jax.tree.map(widen, params)


def part(agent: Agent, params: Params) -> Params:
  """The part of an agent's parameters that has a twin, by default all."""
  if agent.twinned is None:
    return params
  if callable(agent.twinned):
    return agent.twinned(params)
  return {name: params[name] for name in agent.twinned}


def whole(agent: Agent, params: Params, twinned: Params) -> Params:
  """The parameters with the entries in `twinned` replaced."""
  if agent.twinned is None:
    return twinned
  return {name: twinned.get(name, entry) for name, entry in params.items()}


def as_in(online: Params, target: Params) -> Params:
  """Copies of the online parameters, in the types of the twin."""
  return jax.tree.map(lambda o, t: jnp.array(o, t.dtype), online, target)


def stop(params: Params) -> Params:
  return jax.tree.map(jax.lax.stop_gradient, params)


def named_leaves(
  tree: Params, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
  """The leaves with their paths, such as 'params/head/last/Dense_0/bias'."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)
  ]


def from_named(tree: Params, leaves: Mapping[str, Any]) -> Params:
  """A tree like `tree`, of leaves given by their paths."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: leaves[
      jax.tree_util.keystr(path, simple=True, separator='/')
    ],
    tree,
  )


def map_named(
  function: Callable[[str, Any], Any],
  tree: Params,
  is_leaf: Callable[[Any], bool] | None = None,
) -> Params:
  """Maps (path, leaf) -> leaf over a tree."""
  named = iter(named_leaves(tree, is_leaf))
  return jax.tree.map(lambda _: function(*next(named)), tree, is_leaf=is_leaf)
