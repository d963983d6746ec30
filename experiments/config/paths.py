"""Lists of paths in options, whose names may hold commas themselves."""

import os


def split_paths(text: str) -> list[str]:
  """Splits a list of paths at its commas, but not inside names that exist.

  The folder of a cell is named after its values, such as `tau=0.1,seed=0`.

  Args:
    text: paths, separated by commas.
  """
  parts, paths = text.split(','), []
  while parts:
    lengths = range(len(parts), 1, -1)
    joined = (n for n in lengths if os.path.exists(','.join(parts[:n])))
    length = next(joined, 1)
    paths.append(','.join(parts[:length]))
    parts = parts[length:]
  return paths
