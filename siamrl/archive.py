"""Arrays from `.npz` files of untrusted origin.

`numpy.load` trusts a file: it reads pipes until they end, allocates whatever a
header claims before it reads a byte, and raises a dozen kinds of exceptions for
a damaged archive. This module allocates no more than the file holds.
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
  """The message of an exception in one line, or its type if it has none.

  Callers that read untrusted files catch `Exception`: damaged bytes make
  zipfile, its decompressors, NumPy and its header parser raise BadZipFile,
  EOFError, KeyError, MemoryError, NotImplementedError, OSError,
  OverflowError, RecursionError, RuntimeError, struct.error, SyntaxError,
  TokenError, TypeError, ValueError and zlib.error.
  """
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 300 else f'{text[:300]} ...'


def check_fits(needed_bytes: int) -> None:
  """Raises ValueError for data that do not fit into this machine's memory.

  Data are in memory up to three times: as read, converted to the types used for
  learning, and on the device.

  Args:
    needed_bytes: size of the data as read.
  """
  most = memory.memory_bytes() // 3
  if needed_bytes > most:
    raise ValueError(
      f'it takes {needed_bytes / 1e9:.2f} GB of memory, and must take at most '
      f'{most / 1e9:.2f} GB, a third of all memory'
    )


def read_arrays(
  path: str | os.PathLike[str], names: Iterable[str]
) -> dict[str, np.ndarray]:
  """Reads some of the arrays of an `.npz` file.

  Args:
    path: the file.
    names: names of the arrays, in order of importance: the error names the
      first one that cannot be read. Other members are ignored.

  Returns:
    The named arrays that the file has.

  Raises:
    OSError: the file does not exist or cannot be opened.
    ValueError: it is not a regular file or not an archive, or one of the arrays
      is damaged, holds Python objects (a pickle), or is too large (see
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
  """Reads one array after checking that its header tells the truth.

  Args:
    archive: the file.
    member: name of the array's member.
    taken: bytes of the arrays already read.
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
  """Reads an array's shape and type, up to where its data begin."""
  version = np.lib.format.read_magic(file)
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in readers:  # (3, 0): field names outside Latin-1
    raise ValueError(f'version {version} of the .npy format is not read')
  with warnings.catch_warnings(action='ignore'):  # about outdated headers
    shape, _, dtype = readers[version](file)
  return shape, dtype
