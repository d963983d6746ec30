"""Arrays from `.npz` files that anyone may have written.

`numpy.load` trusts a file: it reads pipes until they end, allocates whatever a
header claims before it reads a byte, and lets a dozen kinds of exceptions out
of a damaged archive. Here nothing is allocated that the file does not hold.
"""

from collections.abc import Iterable
import errno
import math
import os
import stat
from typing import IO
import warnings
import zipfile

import numpy as np

from siamrl import memory


def reason(error: BaseException) -> str:
  """What an exception says, in one line; its type where it says nothing.

  Whoever reads what others have written catches `Exception`: damaged bytes make
  zipfile, its decompressors, NumPy and the parser of NumPy's headers raise
  BadZipFile, EOFError, KeyError, MemoryError, NotImplementedError, OSError,
  OverflowError, RecursionError, RuntimeError, struct.error, SyntaxError,
  TokenError, TypeError, ValueError and zlib.error.
  """
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 300 else f'{text[:300]} ...'


def check_fits(needed_bytes: int) -> None:
  """Raises ValueError for data that the memory of this machine cannot hold.

  What is read is in memory up to three times: as it is read, in the types that
  are learned from, and on the device.

  Args:
    needed_bytes: of the data, as they are read.
  """
  most = memory.memory_bytes() // 3
  if needed_bytes > most:
    raise ValueError(
      f'it takes {needed_bytes / 1e9:.2f} GB of memory, and must take at most '
      f'{most / 1e9:.2f} GB, a third of what there is'
    )


def read_arrays(
  path: str | os.PathLike[str], names: Iterable[str]
) -> dict[str, np.ndarray]:
  """Reads some of the arrays of an `.npz` file.

  Args:
    path: the file.
    names: of the arrays, in order of importance: the first one that cannot be
      read is the one that the error names. Other members are not looked at.

  Returns:
    Those of the named arrays that the file has.

  Raises:
    OSError: there is no such file, or it cannot be opened.
    ValueError: it is no regular file or no archive, or one of the arrays is
      damaged, holds Python objects (a pickle), or is too large (see
      `check_fits`). The message names the member, not the file.
  """
  status = os.stat(path)
  if stat.S_ISDIR(status.st_mode):
    raise IsADirectoryError(
      errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path)
    )
  if not stat.S_ISREG(status.st_mode):
    raise ValueError('it is not a regular file')
  arrays: dict[str, np.ndarray] = {}
  with open(path, 'rb') as file:
    try:
      archive = zipfile.ZipFile(file)
    except Exception as error:  # see `reason`
      raise ValueError(
        f'it is not in the .npz format: {reason(error)}'
      ) from error
    members = archive.namelist()
    for name in names:
      member = f'{name}.npy'
      if member not in members:
        continue
      if members.count(member) > 1:
        raise ValueError(
          f'{name}: the file holds it {members.count(member)} times'
        )
      taken = sum(array.nbytes for array in arrays.values())
      try:
        arrays[name] = _read(archive, member, taken)
      except Exception as error:
        raise ValueError(f'{name}: {reason(error)}') from error
  return arrays


def _read(archive: zipfile.ZipFile, member: str, taken: int) -> np.ndarray:
  """One array, once its header has been found to tell the truth.

  Args:
    archive: the file.
    member: of it.
    taken: bytes of the arrays that have been read before.
  """
  info = archive.getinfo(member)
  with archive.open(info) as file:
    shape, dtype = _header(file)
    held = info.file_size - file.tell()
    if dtype.hasobject:
      raise ValueError('it holds Python objects (a pickle), which are not read')
    if any(size < 0 for size in shape):
      raise ValueError(f'its shape {list(shape)} has a negative size')
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != held:
      raise ValueError(
        f'{dtype} {list(shape)} takes {claimed} bytes, but {held} are there'
      )
    check_fits(taken + claimed)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
  """The shape and type of an array; leaves the file where its data begin."""
  version = np.lib.format.read_magic(file)
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in readers:  # (3, 0): fields with names beyond Latin-1
    raise ValueError(f'version {version} of the .npy format is not read')
  with warnings.catch_warnings(action='ignore'):  # of a header's old ways
    shape, _, dtype = readers[version](file)
  return shape, dtype
