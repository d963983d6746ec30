"""Trees of arrays of any library, read as NumPy's.

A tree is a dict or another mapping, a list, a tuple, a dataclass, None or a
leaf, nested at will. A leaf is anything that NumPy can read: its own arrays,
numbers, JAX's arrays, tensors of PyTorch. An object with a `state_dict`, such
as a network of PyTorch, counts as what that returns. No library but NumPy is
imported.
"""

from collections.abc import Callable, Mapping
import copy
import dataclasses
from typing import Any

import numpy as np


def _children(tree: Any) -> list[tuple[str, Any]] | None:
  """The named parts of a node; None for a leaf."""
  if isinstance(tree, np.ndarray):
    return None
  if tree is None:
    return []
  if isinstance(tree, (dict, Mapping)):
    return [(str(key), child) for key, child in tree.items()]
  if isinstance(tree, tuple) and hasattr(tree, '_fields'):
    return list(zip(tree._fields, tree, strict=True))
  if isinstance(tree, (list, tuple)):
    return [(str(index), child) for index, child in enumerate(tree)]
  if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
    names = [field.name for field in dataclasses.fields(tree)]
    return [(name, getattr(tree, name)) for name in names]
  if _has_state(tree):
    return _children(tree.state_dict())
  return None


def _has_state(tree: Any) -> bool:
  return callable(getattr(tree, 'state_dict', None))


def leaves(tree: Any) -> list[tuple[str, Any]]:
  """Each leaf of a tree with its path, such as 'torso/bias'."""
  found: list[tuple[str, Any]] = []
  _collect(tree, '', found)
  return found


def _collect(tree: Any, path: str, found: list[tuple[str, Any]]) -> None:
  """Appends the leaves of a tree in order."""
  children = _children(tree)
  if children is None:
    found.append((path, tree))
    return
  for name, child in children:
    _collect(child, f'{path}/{name}' if path else name, found)


def view(leaf: Any) -> np.ndarray:
  """A leaf as an array of NumPy, in the same memory where that can be."""
  if isinstance(leaf, np.ndarray):
    return leaf
  if hasattr(leaf, 'detach'):  # a tensor of PyTorch
    leaf = leaf.detach().cpu()
    if not hasattr(np, str(leaf.dtype).removeprefix('torch.')):
      leaf = leaf.float()  # such as bfloat16, which NumPy has not
  return np.asarray(leaf)


def precision(leaf: Any) -> float:
  """The relative rounding of the numbers of a leaf."""
  name = str(leaf.dtype) if hasattr(leaf, 'dtype') else ''
  dtype = view(leaf).dtype
  if 'bfloat16' in name or dtype.kind == 'V':
    return 2.0**-8
  return float(np.finfo(dtype).eps) if dtype.kind == 'f' else 0.0


def read(tree: Any) -> dict[str, np.ndarray]:
  """Copies of the leaves by path, floating ones in float64."""
  found = {}
  for path, leaf in leaves(tree):
    array = view(leaf)
    # Kind V are the small floating types of other libraries.
    wide = np.float64 if array.dtype.kind in 'fV' else array.dtype
    found[path] = np.array(array, wide)
  return found


def rebuild(
  tree: Any, change: Callable[[str, Any], Any], path: str = ''
) -> Any:
  """A tree like `tree`, with `change(path, leaf)` for each leaf."""
  children = _children(tree)
  if children is None:
    return change(path, tree)
  if _has_state(tree) and not isinstance(tree, Mapping):
    clone = copy.deepcopy(tree)
    clone.load_state_dict(rebuild(tree.state_dict(), change, path))
    return clone
  made = {
    name: rebuild(child, change, f'{path}/{name}' if path else name)
    for name, child in children
  }
  if tree is None:
    return None
  if isinstance(tree, Mapping):
    make: Callable[..., Any] = type(tree)
    return make(zip(tree, made.values(), strict=True))
  if isinstance(tree, tuple) and hasattr(tree, '_fields'):
    return type(tree)(**made)
  if isinstance(tree, (list, tuple)):
    return type(tree)(made.values())
  return dataclasses.replace(tree, **made)


def like(leaf: Any, values: np.ndarray) -> Any:
  """New memory of a leaf's library and type, with other values."""
  if hasattr(leaf, 'new_tensor'):  # PyTorch
    return leaf.new_tensor(values)
  if hasattr(leaf, 'at') and hasattr(leaf, 'block_until_ready'):  # JAX
    return leaf.at[...].set(values.astype(np.asarray(leaf).dtype))
  return np.array(values, np.asarray(leaf).dtype)
