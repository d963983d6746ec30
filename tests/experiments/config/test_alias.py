"""Old names of flags and of their values are understood, and told."""

import dataclasses

import pytest

from experiments.config import reading
from experiments.config.declaring import (
  UsageError,
  choice,
  option,
  path_option,
)
from experiments.engines import folders
from siamrl.report.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Before:
  """Options as they were."""

  run_dir: str | None = path_option(None, 'A folder.', single=True)
  overwrite: bool = option(False, 'Start afresh.', single=True)
  colour: str = choice('grey', 'Which', {'grey': '', 'centred': '', 'red': ''})
  normalise: bool = option(False, 'Whether.')
  speed: float = option(1.0, 'How fast.')


@dataclasses.dataclass(frozen=True)
class After:
  """The same ones with other names."""

  run_dir: str | None = path_option(None, 'A folder.', single=True)
  overwrite: bool = option(False, 'Start afresh.', single=True)
  color: str = choice(
    'gray',
    'Which',
    {'gray': '', 'centered': '', 'red': ''},
    alias=('colour',),
    value_alias={'grey': 'gray', 'centred': 'centered'},
  )
  normalize: bool = option(False, 'Whether.', alias=('normalise', 'normalised'))
  speed: float = option(1.0, 'How fast.', alias=('pace',))
  weight: float = option(0.0, 'Added since.')
  also: str | None = reading.also()


def test_a_record(capsys):
  def read(*arguments):
    return reading.from_arguments(After, *arguments)

  assert read('--colour=centred', '--normalise', '--pace', '2') == After(
    color='centered', normalize=True, speed=2.0
  )
  assert capsys.readouterr().err == (
    'note: --colour is now --color\n'
    'note: --normalise is now --normalize\n'
    'note: --pace is now --speed\n'
    'note: --color=centred is now --color=centered\n'
  )
  assert read('--nonormalised', '--color=red') == After(color='red')
  capsys.readouterr()
  # The later one of two counts, whatever its spelling.
  assert read('--speed=2', '--pace=3').speed == 3
  assert read('--pace=2', '--speed=3').speed == 3
  assert read('--normalise', '--nonormalize') == After()
  capsys.readouterr()
  assert read('--color=red', '--normalize', '--speed=2').color == 'red'
  assert not capsys.readouterr().err


def test_a_sweep_and_a_flag_file(tmp_path, capsys):
  file = tmp_path / 'a.flags'
  file.write_text('--colour=grey,red\n--normalise=true,false\n')
  sweep = reading.sweep_from_arguments(
    After, f'--flagfile={file}', '--also=--colour=centred --pace=2'
  )
  assert sweep.axes == {
    'color': ('gray', 'red', 'centered'),
    'normalize': (True, False),
    'speed': (1.0, 2.0),
  }
  assert capsys.readouterr().err.splitlines() == [
    'note: --colour is now --color',
    'note: --normalise is now --normalize',
    'note: --color=grey is now --color=gray',
    'note: --pace is now --speed',
    'note: --color=centred is now --color=centered',
  ]
  assert 'colour' not in reading.as_flags(sweep)


def test_errors_speak_of_the_new_names():
  with pytest.raises(UsageError, match='^--color=blue must be one of gray, c'):
    reading.from_arguments(After, '--colour=blue')
  with pytest.raises(UsageError, match='^--speed=fast must be a number$'):
    reading.from_arguments(After, '--pace=fast')
  with pytest.raises(UsageError, match='must not hold gray twice'):
    reading.sweep_from_arguments(After, '--color=gray,grey')


def test_a_run_of_before_is_resumed(tmp_path, capsys):
  path = tmp_path / 'run'

  def opened(cls, **options):
    recorded = cls(run_dir=str(path), **options)
    with folders.open_run(recorded, {'rows': 3}) as folder:
      return folder.notes

  assert not opened(Before, colour='centred', normalise=True)
  stated = RunFolder(path).flags.read_text()
  assert not opened(After, color='centered', normalize=True)
  assert RunFolder(path).flags.read_text() == stated
  with pytest.raises(UsageError, match='--color: centered in the folder, red'):
    opened(After, color='red', normalize=True)
  with pytest.raises(UsageError, match='--weight: 0.0 in the folder, 2.0 now'):
    opened(After, color='centered', normalize=True, weight=2.0)
  again = reading.from_arguments(After, f'--flagfile={RunFolder(path).flags}')
  assert (again.color, again.normalize) == ('centered', True)
