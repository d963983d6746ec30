"""Folders of images as people have them: what is read, and what is refused."""

import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest

from siamrl import images, memory
from siamrl.images import list_folder, load_images

pillow = pytest.importorskip('PIL.Image')

# Not square, and unlike itself however it is turned.
PICTURE = (
  np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
)
# What must be done to the rows and columns of a file to see it as it was meant,
# by the EXIF standard: where its row 0 and its column 0 are.
TURNS = {
  1: lambda x: x,  # top, left
  2: lambda x: x[:, ::-1],  # top, right
  3: lambda x: x[::-1, ::-1],  # bottom, right
  4: lambda x: x[::-1],  # bottom, left
  5: lambda x: x.swapaxes(0, 1),  # left, top
  6: lambda x: x.swapaxes(0, 1)[:, ::-1],  # right, top
  7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
  8: lambda x: x.swapaxes(0, 1)[::-1],  # left, bottom
}
ORIENTATION = 0x0112


def save(path, array=PICTURE, **options):
  """Writes an array, or an image of Pillow's, and returns the path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(array, np.ndarray):
    array = pillow.fromarray(array)
  array.save(path, **options)
  return path


def png(width, height, depth, kind, data=b''):
  """A PNG written by hand: `kind` 0 is gray, 2 colored, 4 gray with alpha."""

  def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return (
      struct.pack('>I', len(content)) + name + content
      + struct.pack('>I', checksum)
    )  # fmt: skip

  header = struct.pack('>IIBBBBB', width, height, depth, kind, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(data))
    + chunk(b'IEND', b'')
  )


def refusal(folder):
  """The one line that refuses a folder."""
  with pytest.raises(ValueError) as error:
    load_images(folder)
  text = str(error.value)
  assert text.startswith(str(folder))
  assert '\n' not in text
  return text


@pytest.mark.parametrize('orientation', TURNS)
@pytest.mark.parametrize('ending', ['png', 'JPG'])
def test_photographs_are_turned(tmp_path, orientation, ending):
  exif = pillow.Exif()
  exif[ORIENTATION] = orientation
  options = {} if ending == 'png' else dict(quality=100, subsampling=0)
  path = save(tmp_path / f'a.{ending}', exif=exif, **options)
  with pillow.open(path) as stored:
    wanted = TURNS[orientation](np.asarray(stored))
  (image,), _ = load_images(tmp_path)
  np.testing.assert_array_equal(image, wanted)


def test_orientations_that_say_nothing(tmp_path, recwarn):
  """Numbers that are none, and EXIF data that cannot be read."""
  exif = pillow.Exif()
  for number in (0, 9):
    exif[ORIENTATION] = number
    save(tmp_path / f'{number}.png', exif=exif)
  exif[ORIENTATION] = 6
  whole = exif.tobytes()
  rng = random.Random(0)
  for number in range(40):
    damaged = bytearray(whole)
    # Not the last bytes, which are the orientation itself.
    damaged[rng.randrange(6)] ^= 1 << rng.randrange(8)
    save(tmp_path / f'x{number}.png', exif=bytes(damaged))
  loaded, _ = load_images(tmp_path)
  assert (loaded == PICTURE).all()
  assert not [w for w in recwarn if 'EXIF' in str(w.message)]


def test_what_is_transparent_lies_on_white(tmp_path):
  alpha = np.zeros((16, 24, 1), np.uint8)
  alpha[:, 12:] = 255
  alpha[:, 8:12] = 51  # a fifth
  weight = alpha / 255
  wanted = PICTURE * weight + 255 * (1 - weight)
  save(tmp_path / 'c' / 'rgba.png', np.concatenate([PICTURE, alpha], -1))
  (image,), _ = load_images(tmp_path)
  np.testing.assert_allclose(image, wanted, atol=1)
  np.testing.assert_array_equal(image[:, 12:], PICTURE[:, 12:])
  np.testing.assert_array_equal(image[:, :8], 255)

  gray = PICTURE[..., :1]
  save(tmp_path / 'g' / 'la.png', np.concatenate([gray, alpha], -1))
  (image,), _ = load_images(tmp_path / 'g')
  np.testing.assert_allclose(image, wanted[..., :1], atol=1)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB'])
def test_a_transparent_color_lies_on_white(tmp_path, mode):
  image = pillow.new(mode, (4, 2), 0)
  if mode == 'P':  # the first colors of the palette: blue and red
    image.putpalette([0, 0, 255, 255, 0, 0])
  second = {'1': 1, 'L': 40, 'P': 1, 'RGB': (9, 40, 80)}[mode]
  image.putpixel((3, 1), second)
  transparent = (0, 0, 0) if mode == 'RGB' else 0
  save(tmp_path / 'a.png', image, transparency=transparent)
  (loaded,), _ = load_images(tmp_path)
  seen = {'1': [255], 'L': [40], 'P': [255, 0, 0], 'RGB': [9, 40, 80]}[mode]
  assert loaded[1, 3].tolist() == seen
  loaded = loaded.copy()
  loaded[1, 3] = 255
  assert (loaded == 255).all()


def test_a_palette_of_degrees(tmp_path):
  """Each color of a palette with a transparency of its own."""
  image = pillow.new('P', (2, 1), 0)
  image.putpalette([0, 0, 0, 200, 100, 0])
  image.putpixel((1, 0), 1)
  save(tmp_path / 'a.png', image, transparency=bytes([0, 51]))
  (loaded,), _ = load_images(tmp_path)
  assert loaded[0, 0].tolist() == [255, 255, 255]
  np.testing.assert_allclose(loaded[0, 1], [244, 224, 204], atol=1)


@pytest.mark.parametrize('kind, channels', [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_deep_images_are_refused(tmp_path, kind, channels):
  data = (b'\0' + b'\x12\x34' * 2 * channels) * 2
  (tmp_path / 'a.png').write_bytes(png(2, 2, 16, kind, data))
  assert 'a.png: not an image: not of 8 bits' in refusal(tmp_path)


def test_printers_colors(tmp_path):
  image = pillow.new('CMYK', (4, 4), (0, 255, 255, 0))
  save(tmp_path / 'a.jpeg', image, quality=100)
  (loaded,), _ = load_images(tmp_path)
  np.testing.assert_allclose(loaded, np.full((4, 4, 3), [255, 0, 0]), atol=8)


def test_only_png_and_jpeg_are_opened(tmp_path):
  postscript = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n%%EOF\n'
  for name, content in (
    ('a.png', postscript),
    ('a.jpg', b'P6 1 1 255 abc'),
    ('a.jpeg', b''),
  ):
    (tmp_path / name).write_bytes(content)
    line = refusal(tmp_path)
    assert line == f'{tmp_path / name}: not an image: neither PNG nor JPEG'
    (tmp_path / name).unlink()
  save(tmp_path / 'a.gif').rename(tmp_path / 'a.png')
  assert 'neither PNG nor JPEG' in refusal(tmp_path)
  # Which of the two it is, its content says.
  save(tmp_path / 'a.jpg').rename(tmp_path / 'a.png')
  assert load_images(tmp_path).images.shape == (1, 16, 24, 3)


@pytest.mark.parametrize('side', [10_000, 60_000])
def test_bombs_are_refused(tmp_path, side):
  (tmp_path / 'a.png').write_bytes(png(side, side, 8, 0))
  with warnings.catch_warnings(action='ignore'):  # as users have it
    assert 'decompression bomb' in refusal(tmp_path)


def test_more_images_than_memory_are_refused(tmp_path, monkeypatch):
  for number in range(4):
    save(tmp_path / f'{number}.png')
  monkeypatch.setattr(memory, 'memory_bytes', lambda: 3 * 4 * PICTURE.size)
  assert len(load_images(tmp_path).images) == 4
  monkeypatch.setattr(memory, 'memory_bytes', lambda: 3 * 4 * PICTURE.size - 3)
  assert 'a third of all memory' in refusal(tmp_path)


@pytest.mark.parametrize(
  'count', [60, pytest.param(3_000, marks=pytest.mark.slow)]
)
def test_damaged_files_give_one_line(tmp_path, count):
  rng = random.Random(0)
  for whole in (
    save(tmp_path / 'whole' / 'a.png').read_bytes(),
    save(tmp_path / 'whole' / 'a.jpg').read_bytes(),
  ):
    path = tmp_path / 'damaged' / 'a.png'
    path.parent.mkdir(exist_ok=True)
    for _ in range(count):
      content = bytearray(whole)
      for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] = rng.randrange(256)
      if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
      path.write_bytes(content)
      try:
        load_images(path.parent)
      except ValueError as error:
        assert str(error).startswith(f'{path}: not an image: ')
        assert '\n' not in str(error)
  path.write_bytes(whole[:-20])
  assert 'truncated' in refusal(path.parent)


def test_hidden_files_and_leftovers_are_not_looked_at(tmp_path):
  save(tmp_path / 'cat' / 'a.png')
  save(tmp_path / 'dog' / 'B.JPEG')
  for name in ('.thumbnails', '__MACOSX', '.git'):
    save(tmp_path / name / 'dog' / 'c.png')
  for name in ('.DS_Store', '._a.png', '.b.png', 'Thumbs.db', 'desktop.ini'):
    for folder in (tmp_path, tmp_path / 'cat'):
      (folder / name).write_bytes(b'no image')
  listing = list_folder(tmp_path)
  assert [path.name for path in listing.paths] == ['a.png', 'B.JPEG']
  assert listing.classes == ('cat', 'dog')
  assert (listing.unread, listing.empty) == ({}, ())
  np.testing.assert_array_equal(load_images(tmp_path).labels, [0, 1])


def test_what_is_not_read_is_said(tmp_path):
  save(tmp_path / 'cat' / 'deep' / 'a.png')
  (tmp_path / 'fox' / 'inside').mkdir(parents=True)
  for name in ('x.webp', 'y.WebP', 'z.gif', 'LICENSE'):
    (tmp_path / 'cat' / name).write_bytes(b'')
  listing = list_folder(tmp_path)
  assert listing.unread == {'.webp': 2, '.gif': 1, '': 1}
  assert images.describe(listing.unread) == '2 .webp, 1 without ending, 1 .gif'
  assert (listing.classes, listing.empty) == (('cat',), ('fox',))
  (tmp_path / 'cat' / 'deep' / 'a.png').unlink()
  assert refusal(tmp_path).endswith(
    'no images (.png, .jpg, .jpeg) in it, but 2 .webp, 1 without ending, 1 .gif'
  )


def test_links_are_followed_and_cycles_are_not(tmp_path):
  data = tmp_path / 'data'
  save(data / 'cat' / '0.png')
  save(data / 'dog' / '0.png')
  save(tmp_path / 'elsewhere' / '0.png')
  save(tmp_path / 'elsewhere' / 'inside' / '1.png')
  (data / 'fox').symlink_to(tmp_path / 'elsewhere')
  (data / 'dog' / '1.png').symlink_to(tmp_path / 'elsewhere' / '0.png')
  wanted = [0, 1, 1, 2, 2]
  np.testing.assert_array_equal(load_images(data).labels, wanted)
  # Back to the folder itself, above it, to another class, to each other.
  (data / 'again').symlink_to('.')
  (data / 'above').symlink_to(tmp_path)
  (data / 'cat' / 'up').symlink_to('..')
  (data / 'cat' / 'other').symlink_to(data / 'dog')
  (data / 'dog' / 'other').symlink_to(data / 'cat')
  (tmp_path / 'elsewhere' / 'inside' / 'out').symlink_to(tmp_path / 'elsewhere')
  np.testing.assert_array_equal(load_images(data).labels, wanted)
  assert list_folder(data).classes == ('cat', 'dog', 'fox')
  # By another name of the folder, too.
  (tmp_path / 'name').symlink_to(data)
  np.testing.assert_array_equal(load_images(tmp_path / 'name').labels, wanted)
  (data / 'wolf').symlink_to('dog')
  assert 'dog and wolf are one folder, and cannot be two' in refusal(data)


@pytest.mark.parametrize('name', ['cat/a.png', 'cat'])
def test_links_to_nothing(tmp_path, name):
  save(tmp_path / 'dog' / 'a.png')
  (tmp_path / 'cat').mkdir(exist_ok='/' in name)
  if '/' not in name:
    (tmp_path / 'cat').rmdir()
  for target in ('nowhere', (tmp_path / name).name):  # the second is a circle
    (tmp_path / name).symlink_to(target)
    assert f'{tmp_path / name}: a broken link' in refusal(tmp_path)
    (tmp_path / name).unlink()


def test_pipes_are_no_images(tmp_path):
  os.mkfifo(tmp_path / 'a.png')
  assert 'a.png: not an image: it is not a regular file' in refusal(tmp_path)


@pytest.mark.parametrize(
  'parts',
  [
    ('train', 'val'),
    ('Train', 'TEST', 'annotations'),
    ('train',),
    ('train2017', 'val2017', 'unlabeled2017'),
    ('training_set', 'test_set'),
  ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, parts):
  for part in parts:
    for name in ('cat', 'dog'):
      save(tmp_path / part / name / 'a.png')
  line = refusal(tmp_path)
  assert 'are parts of a data set, not classes' in line
  named = line.rpartition(' ')[2]
  assert os.path.basename(named) in parts
  np.testing.assert_array_equal(load_images(named).labels, [0, 1])


def test_a_vehicle_is_a_class(tmp_path):
  names = ('bullet_train', 'bus', 'test tube', 'train', 'trainer', 'value')
  for name in names:
    save(tmp_path / name / 'a.png')
  assert list_folder(tmp_path).classes == names


def test_names_that_are_not_text(tmp_path):
  for name in (b'caf\xe9', b'two\nlines'):
    save(tmp_path / os.fsdecode(name) / os.fsdecode(b'\xff.png'))
  np.testing.assert_array_equal(load_images(tmp_path).labels, [0, 1])


@pytest.mark.parametrize(
  'count', [40, pytest.param(2_000, marks=pytest.mark.slow)]
)
def test_any_tree_of_folders(tmp_path, count):
  """Each visible image once, in the class that its first folder names."""
  rng = random.Random(0)
  folders = ('cat', 'dog', 'Fox', '.git', '__MACOSX', 'a.png', 'bus')
  files = ('0.png', '1.PNG', '.2.png', '._0.png', 'x.webp', 'note', 'Thumbs.db')
  whole = save(tmp_path / 'whole.png').read_bytes()

  def visible(parts):
    return not any(part.startswith(('.', '__MACOSX')) for part in parts)

  outcomes = set()
  for number in range(count):
    data = tmp_path / str(number)
    data.mkdir()
    flat = rng.random() < 0.2
    seen: dict[str, int] = {}  # images of each class
    for _ in range(rng.randint(1, 8)):
      depth = 0 if flat or rng.random() < 0.05 else rng.randint(1, 3)
      parts = rng.choices(folders, k=depth)
      name = rng.choice(files)
      path = data.joinpath(*parts, name)
      if path.exists():
        continue
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(whole)
      if visible((*parts, name)) and name.lower().endswith('.png'):
        top = parts[0] if parts else ''
        seen[top] = seen.get(top, 0) + 1
    # Links to what is there already: to the whole, to a class, in a circle.
    inside = [path for path in sorted(data.rglob('*')) if path.is_dir()]
    inside = [p for p in inside if visible(p.relative_to(data).parts)]
    for parent in inside:
      if parent.parent != data:
        (parent / 'link').symlink_to(rng.choice([data, inside[0], parent]))
    try:
      loaded = load_images(data)
    except ValueError as error:
      assert str(error).startswith(str(data)) and '\n' not in str(error)
      assert not seen or ('' in seen and len(seen) > 1)
      outcomes.add('refused')
      continue
    assert len(loaded.images) == sum(seen.values())
    if loaded.labels is None:
      assert set(seen) == {''}
      outcomes.add('flat')
    else:
      wanted = [seen[name] for name in sorted(seen)]
      assert np.bincount(loaded.labels).tolist() == wanted
      outcomes.add('classes')
  assert outcomes == {'refused', 'flat', 'classes'}
