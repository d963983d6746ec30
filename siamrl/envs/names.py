"""Names of environments, whatever the spelling."""

from collections.abc import Iterable
import difflib
import re


def letters(name: str) -> str:
  """Reduces a name to its letters and digits, so that spelling is ignored."""
  return re.sub(r'[^a-z0-9]', '', name.lower())


def closest(name: str, known: Iterable[str]) -> str:
  """Returns the end of an error message: '; the closest are: ...', or ''.

  Args:
    name: the unknown name.
    known: the known names; at most three close ones are given.
  """
  by_letters = {letters(one): one for one in known}
  close = difflib.get_close_matches(letters(name), by_letters, n=3, cutoff=0.5)
  hint = ', '.join(by_letters[one] for one in close)
  return f'; the closest are: {hint}' if hint else ''
