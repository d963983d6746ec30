"""Lists of paths in options, whose names may hold commas themselves."""

import os

# Of a path and of a name in it, on Linux.
_MOST_CHARACTERS, _MOST_OF_NAME = 4_096, 255


def split_paths(text: str) -> list[str]:
  """Splits a list of paths at its commas, but not inside names that exist.

  The folder of a cell is named after its values, such as `tau=0.1,seed=0`.

  Args:
    text: paths, separated by commas.
  """
  parts, paths, start = text.split(','), [], 0
  while start < len(parts):
    longest, name = start + 1, parts[start]
    for end in range(start + 2, len(parts) + 1):
      name = f'{name},{parts[end - 1]}'
      if len(name) > _MOST_CHARACTERS or (
        len(name) - name.rfind('/') > _MOST_OF_NAME + 1
      ):
        break
      if os.path.exists(name):
        longest = end
    paths.append(','.join(parts[start:longest]))
    start = longest
  return paths
