"""Segment files: slots of a replay in host memory, compressed.

A manifest lists the files that make up a replay's state, each with its name,
size, checksum and slots.
"""

import hashlib
import os
import pathlib
import re
import secrets
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# Measured on Atari frames, on one core: 450 to 600 MB/s and 1/30 to 1/70 of the
# size, while a disk took the raw bytes at 340 MB/s.
_ZLIB_LEVEL = 1
_NAME = re.compile(r'replay-[0-9a-f]{32}\.z(\.tmp)?')


def write(
  directory: pathlib.Path, arrays: Sequence[np.ndarray], runs: Sequence[slice]
) -> dict[str, Any]:
  """Writes some slots to a new file.

  Args:
    directory: directory for the file.
    arrays: [slots, ...] each, written one after the other.
    runs: the slots to write of each array.

  Returns:
    The name of the file, its size and its checksum, as in a manifest.

  Raises:
    OSError: if it cannot be written.
  """
  # A name that no earlier process can have used and left half-written.
  name = f'replay-{secrets.token_hex(16)}.z'
  temporary = directory / f'{name}.tmp'
  digest, nbytes = hashlib.sha256(), 0
  compressor = zlib.compressobj(_ZLIB_LEVEL)
  with open(temporary, 'xb') as file:
    for array in arrays:
      for run in runs:
        chunk = compressor.compress(array[run].data)
        digest.update(chunk)
        nbytes += file.write(chunk)
    chunk = compressor.flush()
    digest.update(chunk)
    nbytes += file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, directory / name)
  return {'name': name, 'nbytes': nbytes, 'sha256': digest.hexdigest()}


def read(
  directory: pathlib.Path,
  segment: dict[str, Any],
  count: int,
  slot_nbytes: int,
) -> bytes:
  """Reads a file of `count` slots of `slot_nbytes` bytes each.

  Args:
    directory: directory of the file.
    segment: its entry in a manifest.
    count: slots in the file.
    slot_nbytes: bytes of one slot, over all arrays.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is missing, truncated, corrupt or of the wrong size.
  """
  packed = _read_packed(directory, segment)
  nbytes = count * slot_nbytes
  raw = zlib.decompress(packed, bufsize=max(nbytes, 1))
  if len(raw) != nbytes:
    raise ValueError(
      f'segment {segment["name"]} holds {len(raw)} bytes: these are not '
      f'{count} slots'
    )
  return raw


def verify(directory: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
  """Checks the segment files of a manifest against their checksums.

  Args:
    directory: where the segment files are.
    manifest: manifest as returned by `HostReplay.save`, or read back from JSON.

  Raises:
    OSError: if a segment cannot be read.
    ValueError: if one is missing, truncated or corrupt.
  """
  for segment in _listed(manifest):
    _read_packed(pathlib.Path(directory), segment)


def prune(
  directory: str | os.PathLike[str], *manifests: dict[str, Any]
) -> None:
  """Deletes the segment files that none of the manifests lists.

  Only call it once the newest manifest is safely stored: manifests not given
  here can no longer be loaded afterwards. Other files are left alone.

  Args:
    directory: where the segment files are.
    *manifests: manifests from `HostReplay.save` of each state to keep.
  """
  needed = {s['name'] for each in manifests for s in _listed(each)}
  for path in pathlib.Path(directory).iterdir():
    if path.name in needed or not _NAME.fullmatch(path.name):
      continue
    if path.is_symlink() or not path.is_dir():  # a directory is not ours
      path.unlink()


def _listed(manifest: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the entries of all files of a manifest."""
  # Only a prioritized replay has a file of priorities.
  priorities = manifest.get('priorities')
  return manifest['segments'] + ([priorities] if priorities else [])


def has_size(path: pathlib.Path, nbytes: int) -> bool:
  """Returns whether a file exists and has a size."""
  return path.is_file() and path.stat().st_size == nbytes


def sync_directory(directory: pathlib.Path) -> None:
  """Makes the names of new files durable, if the system supports it."""
  if os.name != 'posix':
    return
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _read_packed(directory: pathlib.Path, segment: dict[str, Any]) -> bytes:
  """Returns the compressed content of a segment file, verified.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is missing, truncated or corrupt.
  """
  name = segment['name']
  if not _NAME.fullmatch(name):
    raise ValueError(f'segment {name!r}: not the name of a segment file')
  path = directory / name
  if not os.path.lexists(path):
    raise ValueError(f'segment {name} is missing in {directory}')
  if not path.is_file():  # reading a pipe would never end
    raise ValueError(f'segment {name} in {directory} is not a file')
  packed = path.read_bytes()
  if len(packed) != segment['nbytes']:
    raise ValueError(
      f'segment {name} has {len(packed)} bytes: must be {segment["nbytes"]}'
    )
  if hashlib.sha256(packed).hexdigest() != segment['sha256']:
    raise ValueError(f'segment {name} is corrupt: its checksum differs')
  return packed
