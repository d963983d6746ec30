"""Files of arrays that are damaged, foreign or hostile: one line each."""

import io
import os
import random
import zipfile

import numpy as np
import pytest

from siamrl import archive, memory
from siamrl.archive import read_arrays
from siamrl.images import load_images
from siamrl.replay.dataset import load_dataset

ARRAYS = {
  'images': np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
  'labels': np.arange(4),
}


def npy(array):
  """An array as a member of an archive has it."""
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def lying(header, data=bytes(24), version=1):
  """A member whose header is this text."""
  text = f'{header}\n'.encode()
  length = len(text).to_bytes(2 if version == 1 else 4, 'little')
  return b'\x93NUMPY' + bytes([version, 0]) + length + text + data


def write(path, members, compression=zipfile.ZIP_DEFLATED):
  with zipfile.ZipFile(path, 'w', compression) as file:
    for name, content in members:
      file.writestr(name, content)
  return path


def refusal(path):
  """The one line that refuses a file, by all who read such files."""
  lines = []
  for read in (lambda p: read_arrays(p, ARRAYS), load_images, load_dataset):
    with pytest.raises(ValueError) as error:
      read(path)
    lines.append(str(error.value))
    assert '\n' not in lines[-1]
  assert all(line.startswith(f'{path}: ') for line in lines[1:])
  return lines[0]


def test_there_and_back(tmp_path):
  path = tmp_path / 'a.npz'
  for save in (np.savez, np.savez_compressed):
    save(path, other=np.array([None]), **ARRAYS)
    read = read_arrays(path, ('labels', 'images', 'missing'))
    assert list(read) == ['labels', 'images']
    for name, array in read.items():
      np.testing.assert_array_equal(array, ARRAYS[name])
  order = {'images': np.asfortranarray(ARRAYS['images'])}
  np.savez(path, **order, labels=ARRAYS['labels'].astype('>i2'))
  for name, array in read_arrays(path, ARRAYS).items():
    np.testing.assert_array_equal(array, ARRAYS[name])


def test_what_is_no_file(tmp_path):
  path = tmp_path / 'a.npz'
  with pytest.raises(FileNotFoundError):
    read_arrays(path, ARRAYS)
  path.mkdir()
  with pytest.raises(IsADirectoryError):
    read_arrays(path, ARRAYS)
  path.rmdir()
  os.mkfifo(path)  # whoever opens it waits
  assert refusal(path) == 'it is not a regular file'
  path.unlink()
  path.symlink_to('/dev/zero')
  assert refusal(path) == 'it is not a regular file'


def header(descr='|u1', shape='(24,)'):
  return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
  'content, words',
  [
    (
      lying(header(shape='(9999999999999,)')),
      'takes 9999999999999 bytes, but 24 are there',
    ),
    (lying(header('<f8', '(10**9, 10**9)')), 'images: '),
    (lying(header(shape='(-4, -6)')), 'a negative size'),
    (lying(header(shape='(23,)')), 'takes 23 bytes, but 24 are there'),
    (lying(header('|V0', '(4,)'), b''), 'uint8'),
    (lying(header('|O', '(3,)')), 'pickle'),
    (lying(header(), version=3), 'version'),
    (lying(header()[:-1]), 'images: '),
    (lying('(' * 2_000), 'images: '),
    (lying('{"descr": 1if 2else 3}'), 'images: '),
    (lying("'\\x00'"), 'images: '),
    (b'\x93NUMPY\x02\x00\xff\xff\xff\xff', 'images: '),
    (b'\x93NUMPX' + npy(ARRAYS['images'])[6:], 'images: '),
    (b'', 'images: '),
    (b'\x80\x04N.', 'images: '),
  ],
  ids=range(15),
)
def test_headers_that_lie(tmp_path, recwarn, content, words):
  path = write(tmp_path / 'a.npz', [('images.npy', content)])
  with pytest.raises(ValueError) as error:
    load_images(path)
  line = str(error.value)
  assert line.startswith(f'{path}: ') and '\n' not in line
  assert words in line
  assert len(line) < len(str(path)) + 400
  assert not recwarn.list


def test_nothing_is_read_before_it_is_known_to_fit(tmp_path, monkeypatch):
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, images=np.zeros((999, 1_000, 10), np.uint8))
  monkeypatch.setattr(memory, 'memory_bytes', lambda: 10**7)
  monkeypatch.setattr(np.lib.format, 'read_array', None)
  with pytest.raises(ValueError, match='a third of all memory') as error:
    load_images(path)
  assert '0.01 GB' in str(error.value)


def test_arrays_count_together(tmp_path, monkeypatch):
  path = tmp_path / 'a.npz'
  np.savez(path, images=np.zeros((8, 8), np.uint8), labels=np.zeros(8))
  monkeypatch.setattr(memory, 'memory_bytes', lambda: 3 * 128)
  assert len(read_arrays(path, ARRAYS)) == 2
  monkeypatch.setattr(memory, 'memory_bytes', lambda: 3 * 127)
  with pytest.raises(ValueError, match='labels: it takes'):
    read_arrays(path, ARRAYS)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_member_that_is_there_twice(tmp_path):
  twice = [('images.npy', npy(ARRAYS['images']))] * 2
  path = write(tmp_path / 'a.npz', twice)
  with pytest.raises(ValueError, match='images: the file holds it 2 times'):
    load_images(path)


def test_archives_of_something_else(tmp_path):
  path = write(tmp_path / 'a.npz', [('word/document.xml', '<a/>')])
  assert read_arrays(path, ARRAYS) == {}
  with pytest.raises(ValueError, match='no array named images'):
    load_images(path)
  with pytest.raises(ValueError, match='observations: is missing'):
    load_dataset(path)


@pytest.mark.parametrize(
  'kind',
  [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_any_compression(tmp_path, kind):
  path = write(
    tmp_path / 'a.npz', [('images.npy', npy(ARRAYS['images']))], kind
  )
  assert load_images(path).images.shape == (4, 2, 3, 1)


@pytest.mark.parametrize(
  'count', [400, pytest.param(20_000, marks=pytest.mark.slow)]
)
def test_damaged_archives(tmp_path, count):
  """Bytes of archives and of the members in them are others, or missing."""
  rng = random.Random(0)
  path = tmp_path / 'a.npz'
  archives = []
  for save in (np.savez, np.savez_compressed):
    save(path, **ARRAYS)
    archives.append(path.read_bytes())
  causes = set()
  for number in range(count):
    whole = npy(ARRAYS['images']) if number % 2 else rng.choice(archives)
    content = bytearray(whole)
    # Of members mostly the header.
    places = min(len(whole), 128) if number % 2 else len(whole)
    for _ in range(rng.randint(1, 3)):
      content[rng.randrange(places)] = rng.randrange(256)
    if rng.random() < 0.2:
      del content[rng.randrange(len(content)) :]
    if number % 2:
      write(path, [('images.npy', bytes(content))])
    else:
      path.write_bytes(content)
    try:
      load_images(path)
    except ValueError as error:
      assert str(error).startswith(f'{path}: ') and '\n' not in str(error)
      cause = error.__cause__ and error.__cause__.__cause__
      causes.add(type(cause).__name__)
  # Of which many are no ValueErrors.
  assert {'BadZipFile', 'TokenError', 'ValueError'} <= causes


def test_reasons_are_one_short_line():
  assert archive.reason(KeyError()) == 'KeyError'
  assert archive.reason(ValueError('two\nlines')) == 'two lines'
  assert len(archive.reason(ValueError('x' * 10_000))) < 310
