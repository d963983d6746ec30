"""Flag files: where they are found, and what their lines say.

A flag file has one flag per line; # and // begin comment lines. A line of
`--flagfile=PATH` includes another file. A relative path is looked for, in this
order:

1. in the folder of the file that includes it;
2. in the working directory;
3. in the folder that holds the package `experiments`, so that
   `experiments/flagfiles/nature_dqn.flags` works from any folder;
4. among the presets, with or without its ending: `nature_dqn`.
"""

from collections.abc import Iterator, Sequence
import codecs
import errno
import os
import pathlib
import re
import stat

PRESETS = pathlib.Path(__file__).parents[1] / 'flagfiles'
_INCLUDE = re.compile(r'--?flagfile(?:=(.*))?', re.DOTALL)
_ENDING = '.flags'
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class FlagFileError(ValueError):
  """A flag file cannot be used; the message is one line for the user."""


def expand(arguments: Sequence[str]) -> list[str]:
  """A command line in which flag files are replaced by what they say.

  Args:
    arguments: such as '--flagfile=nature_dqn'; the path may also be the next
      argument. Those after '--' are left alone.

  Raises:
    FlagFileError: a file cannot be found or read, is not UTF-8 text, or
      includes itself. The message names it, and the line that includes it.
  """
  result = []
  rest = iter(arguments)
  for argument in rest:
    include = _INCLUDE.fullmatch(argument)
    if include is None:
      result.append(argument)
      if argument == '--':
        break
    else:
      path = next(rest, '') if include[1] is None else include[1]
      result += _lines(path.strip(), None, '', ())
  return [*result, *rest]


def _lines(
  path: str,
  folder: pathlib.Path | None,
  where: str,
  including: tuple[pathlib.Path, ...],
) -> Iterator[str]:
  """The flags of a file, those of the files that it includes in their place.

  Args:
    path: the path as the user wrote it.
    folder: the including file's folder; None on the command line.
    where: the start of a message, the file and the line that include it.
    including: the files that include each other, the outermost first.
  """
  if not path:
    raise FlagFileError(f'{where}--flagfile must name a file')
  found = find(path, folder)
  try:
    text = _read(found)
  except OSError as error:
    raise FlagFileError(
      f'{where}--flagfile={path} cannot be read: {error.strerror or error}'
    ) from error
  except ValueError as error:
    raise FlagFileError(
      f'{where}--flagfile must name a text file: {path} {error}'
    ) from error
  here = found.resolve()
  if here in including:
    raise FlagFileError(f'{where}--flagfile={path} includes itself')
  for number, line in enumerate(re.split(r'\r\n|\r|\n', text), 1):
    # Also in the middle of a file: that is where `cat` leaves it.
    line = line.lstrip('\ufeff').strip()
    include = _INCLUDE.fullmatch(line)
    if include is not None:
      yield from _lines(
        (include[1] or '').strip(),
        here.parent,
        f'{found}, line {number}: ',
        (*including, here),
      )
    elif line and not line.startswith(('#', '//')):
      yield line


def find(path: str, folder: pathlib.Path | None = None) -> pathlib.Path:
  """The first file of a name; if there is none, the name as it stands.

  Args:
    path: the path as the user wrote it.
    folder: the including file's folder, which is searched first.
  """
  given = pathlib.Path(os.path.expanduser(path))
  folders = [] if folder is None else [folder]
  folders += [pathlib.Path(), PRESETS.parents[1]]
  candidates = [parent / given for parent in folders]
  if given.name == path:
    candidates += [PRESETS / path, PRESETS / (path + _ENDING)]
  return next((each for each in candidates if os.path.isfile(each)), given)


def _read(path: pathlib.Path) -> str:
  """The text of a file.

  Raises:
    OSError: it cannot be read, or is no regular file. A pipe would have to be
      read more than once, and may keep one waiting for ever.
    ValueError: it is not UTF-8 text; the message says what it is.
  """
  mode = os.stat(path).st_mode
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, 'not a regular file')
  content = path.read_bytes()
  if content.startswith(_UTF16_MARKS):
    raise ValueError('is UTF-16, and must be saved as UTF-8')
  if b'\0' in content:
    raise ValueError('holds null bytes')
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise ValueError(f'is not UTF-8 in line {line}') from error
