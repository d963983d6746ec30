"""Flag files: where they are found, and what is no flag file."""

import os
import pathlib

import pytest

from experiments.config.flag_files import FlagFileError, PRESETS, expand

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path, monkeypatch):
  """An empty working directory that is not the repository."""
  folder = tmp_path / 'here'
  folder.mkdir()
  monkeypatch.chdir(folder)
  return folder


def refused(*arguments: str) -> str:
  """The line with which a command line is refused."""
  with pytest.raises(FlagFileError) as caught:
    expand(arguments)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_flags_stand_where_their_file_was_named(here):
  (here / 'a').write_text('--x=1\n\n# note\n// note\n--flagfile=b\n--y=2\n')
  (here / 'b').write_text('--x=3\n--text=a # b\n')
  inside = ['--x=1', '--x=3', '--text=a # b', '--y=2']
  assert expand(['--x=0', '--flagfile=a', 'z']) == ['--x=0', *inside, 'z']
  assert expand(['--flagfile', 'a']) == inside
  assert expand(['-flagfile=a', '-flagfile', 'b']) == [*inside, *inside[1:3]]
  assert expand(['--', '--flagfile=a']) == ['--', '--flagfile=a']


def test_an_include_lies_beside_what_includes_it(here, tmp_path):
  """Rather than in the working directory, where it is looked for next."""
  deep = tmp_path / 'some where' / 'deep'
  deep.mkdir(parents=True)
  (deep / 'child').write_text('--flagfile=../parent\n--flagfile=other\n')
  (deep.parent / 'parent').write_text('--flagfile=deep/leaf')
  (deep / 'leaf').write_text('--x=beside')
  (here / 'leaf').write_text('--x=here')
  (here / 'other').write_text('--y=here')
  assert expand([f'--flagfile={deep}/child']) == ['--x=beside', '--y=here']
  (deep / 'other').write_text('--y=beside')
  assert expand([f'--flagfile={deep}/child']) == ['--x=beside', '--y=beside']
  # A linked file includes what lies beside the file itself.
  (here / 'link').symlink_to(deep / 'child')
  assert expand(['--flagfile=link']) == ['--x=beside', '--y=beside']


def test_presets_are_found_from_any_folder(here):
  wanted = expand([f'--flagfile={PRESETS}/td3_paper.flags'])
  assert wanted
  for path in (
    'td3_paper',
    'td3_paper.flags',
    'experiments/flagfiles/td3_paper.flags',
    os.path.relpath(PRESETS / 'td3_paper.flags'),
  ):
    assert expand([f'--flagfile={path}']) == wanted, path
  (here / 'td3_paper').write_text('--mine=1')
  assert expand(['--flagfile=td3_paper']) == ['--mine=1']


def test_every_preset_is_whole_from_any_folder(here):
  for preset in PRESETS.glob('*.flags'):
    found = expand([f'--flagfile={preset.stem}'])
    assert found
    assert all(line.startswith('--') for line in found), preset


def test_home(here, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine').write_text('--x=1')
  (here / 'a').write_text('--flagfile=~/mine')
  assert expand(['--flagfile=~/mine', '--flagfile', 'a']) == ['--x=1', '--x=1']


@pytest.mark.parametrize(
  'content',
  [
    b'\xef\xbb\xbf--x=1\n--y=\xc3\xa9\n',
    b'--x=1\r\n--y=\xc3\xa9\r\n',
    b'\xef\xbb\xbf# note\r\n\r\n  --x=1 \t\r\n\t--y=\xc3\xa9\xc2\xa0\r\n  # b',
    b'--x=1\r--y=\xc3\xa9',
    b'--x=1\n\xef\xbb\xbf\xef\xbb\xbf--y=\xc3\xa9\n\xef\xbb\xbf',  # by `cat`
  ],
)
def test_files_as_editors_leave_them(here, content):
  (here / 'a').write_bytes(content)
  assert expand(['--flagfile=a']) == ['--x=1', '--y=\u00e9']
  # The same where it is included.
  (here / 'b').write_bytes(b'\xef\xbb\xbf--flagfile=a \r\n')
  assert expand(['--flagfile=b']) == ['--x=1', '--y=\u00e9']


@pytest.mark.parametrize(
  'content, reason',
  [
    ('--x=1\n'.encode('utf-16'), 'is UTF-16, and must be saved as UTF-8'),
    (b'\xfe\xff' + '--x=1'.encode('utf-16-be'), 'is UTF-16'),
    ('--x=1\n'.encode('utf-16-le'), 'holds null bytes'),
    (b'--x=1\n--y=\xe9\n', 'is not UTF-8 in line 2'),
  ],
)
def test_what_is_no_text(here, content, reason):
  (here / 'a').write_bytes(content)
  line = f'--flagfile must name a text file: a {reason}'
  assert refused('--flagfile=a').startswith(line)
  (here / 'b').write_text('\n--flagfile=a')
  assert refused('--flagfile=b').startswith(f'b, line 2: {line}')


def test_what_cannot_be_read(here):
  (here / 'folder').mkdir()
  os.mkfifo(here / 'pipe')
  (here / 'loop').symlink_to('loop')
  for path, reason in (
    ('none', 'No such file or directory'),
    ('folder', 'Is a directory'),
    ('pipe', 'not a regular file'),
    ('/dev/zero', 'not a regular file'),
    ('loop', 'Too many levels of symbolic links'),
    ('none/a', 'No such file or directory'),
  ):
    line = f'--flagfile={path} cannot be read: {reason}'
    assert refused(f'--flagfile={path}') == line
    (here / 'a').write_text(f'# note\n--x=1\n--flagfile={path}\n')
    assert refused('--flagfile=a') == f'a, line 3: {line}'


@pytest.mark.skipif(os.getuid() == 0, reason='nothing is closed to root')
def test_without_permission(here):
  (here / 'a').write_text('--x=1')
  (here / 'a').chmod(0)
  assert refused('--flagfile=a').endswith('cannot be read: Permission denied')


def test_a_file_must_be_named(here):
  (here / 'a').write_text('--flagfile=\n')
  (here / 'b').write_text('--x=1\n--flagfile\n')
  assert refused('--flagfile=') == '--flagfile must name a file'
  assert refused('--flagfile') == '--flagfile must name a file'
  assert refused('--flagfile=a') == 'a, line 1: --flagfile must name a file'
  assert refused('--flagfile=b') == 'b, line 2: --flagfile must name a file'


def test_a_cycle_is_told_from_a_file_that_is_read_twice(here):
  (here / 'leaf').write_text('--x=1')
  (here / 'a').write_text('--flagfile=leaf\n--flagfile=leaf')
  assert expand(['--flagfile=a', '--flagfile=a']) == ['--x=1'] * 4
  (here / 'self').write_text('--x=1\n--flagfile=./self')
  assert refused('--flagfile=self').endswith(
    'self, line 2: --flagfile=./self includes itself'
  )
  (here / 'one').write_text('--flagfile=two')
  (here / 'two').write_text(f'\n\n--flagfile={here}/link')
  (here / 'link').symlink_to('one')
  assert refused('--flagfile=one').endswith(
    f'two, line 3: --flagfile={here}/link includes itself'
  )
