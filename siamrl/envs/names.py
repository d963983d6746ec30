"""Names of environments, whatever the spelling."""

from collections.abc import Iterable
import difflib
import re


def letters(name: str) -> str:
  """What is left of a name when spelling does not count."""
  return re.sub(r'[^a-z0-9]', '', name.lower())


def closest(name: str, known: Iterable[str]) -> str:
  """The end of an error message: '; the closest are: ...', or ''.

  Args:
    name: of which nothing is known.
    known: names that are; the three closest are given, if any is close.
  """
  by_letters = {letters(one): one for one in known}
  close = difflib.get_close_matches(letters(name), by_letters, n=3, cutoff=0.5)
  hint = ', '.join(by_letters[one] for one in close)
  return f'; the closest are: {hint}' if hint else ''
