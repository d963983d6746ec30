"""Pages about runs: they load nothing, show texts as they are, and say all."""

import html.parser
import json
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from experiments import classic, report
from experiments.config import executing, reading
from siamrl.report.metrics import MetricsWriter
from siamrl.report.run_folder import open_run_folder

pytest.importorskip('jinja2')
vl_convert = pytest.importorskip('vl_convert')

EVIL = '<img src=http://x.example/a.png>'


@pytest.fixture
def fake_library(monkeypatch):
  """Seconds are saved where Vega-Lite does not matter."""
  monkeypatch.setattr(
    vl_convert, 'javascript_bundle', lambda snippet: '"</script>"'
  )


def _report(*arguments):
  return executing.execute(
    report.ReportConfig, '', report.main, arguments, listed='runs'
  )


def _run(path, *arguments, rows=3):
  config = reading.from_arguments(classic.ClassicConfig, *arguments)
  folder, _ = open_run_folder(
    path, reading.as_flags(config), reading.as_json(config) | {'derived': {}}
  )
  with folder, MetricsWriter(folder.metrics) as writer:
    for number in range(rows):
      row = {'iteration': number, 'env_steps': 10 * (number + 1)}
      writer.write(row | {'train_return': number, 'panel/twin_age': 5.5})


@pytest.fixture
def sweep(tmp_path):
  """A sweep with a cell that is done and one that failed."""
  path = tmp_path / 'runs' / f'a {EVIL.replace("/", "&")}'
  path.mkdir(parents=True)
  cells = {}
  for name, period in (('one', 10), ('two', 99)):
    arguments = ['--environment=catch', f'--target_period={period}']
    cells[name] = {'arguments': arguments, 'point': {}, 'options': {}}
    _run(path / name, *arguments)
    record = {'state': 'done', 'attempts': 1, 'exit_code': 0, 'lines': []}
    if name == 'two':
      record |= {'state': 'failed', 'exit_code': 1, 'lines': ['first', EVIL]}
    (path / f'{name}.json').write_text(json.dumps(record))
  (path / 'sweep.json').write_text(
    json.dumps({'mark': 'siamrl sweep', 'launcher': 'classic', 'cells': cells})
  )
  return path


class _Page(html.parser.HTMLParser):
  """The elements, the attributes and the text of a page."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.attributes, self.text = [], [], []
    self.scripts, self.styles, self.data = [], [], None
    self._in, self._is_data = '', False
    self.feed(pathlib.Path(path).read_text())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value) for name, value in attrs]
    self._in, self._is_data = tag, ('id', 'data') in attrs

  def handle_endtag(self, tag):
    self._in = ''

  def handle_data(self, data):
    if self._is_data and self._in == 'script':
      self.data = json.loads(data)
    elif self._in == 'script':
      self.scripts.append(data)
    elif self._in == 'style':
      self.styles.append(data)
    else:
      self.text.append(data)


def _check_loads_nothing(page):
  assert not {'link', 'img', 'iframe', 'object', 'embed'} & set(page.tags)
  assert not [a for a in page.attributes if a[1] in ('src', 'href', 'srcset')]
  for style in page.styles:
    assert 'url(' not in style and '@import' not in style
  (policy,) = [
    v for _, n, v in page.attributes if n == 'content' and '-src' in v
  ]
  assert policy.startswith("default-src 'none';") and 'http' not in policy


def test_the_page_loads_nothing_and_escapes_all(fake_library, sweep, tmp_path):
  assert not _report(str(sweep), f'--output={tmp_path / "a"}')
  page = _Page(tmp_path / 'a.html')
  _check_loads_nothing(page)
  assert len(page.scripts) == 2  # the library did not end its element
  text = ' '.join(page.text)
  assert text.count(EVIL) == 1 and 'first' in text
  assert sweep.name in text


def test_it_says_what_was_run_and_how_it_ended(fake_library, sweep, tmp_path):
  assert not _report(str(sweep), f'--output={tmp_path / "a"}')
  page = _Page(tmp_path / 'a.html')
  text = re.sub(r'\s+', ' ', ' '.join(page.text))
  assert '2 cells of 1 sweep, launcher experiments.classic' in text
  assert '--target_period 10, 99' in text
  assert '--environment catch' in text and '--discount' not in text
  assert '2 cells: 1 done, 1 failed' in text
  assert 'jax' in text and 'first start' in text
  assert page.data['settings'] == ['target_period=10', 'target_period=99']
  assert page.data['panel'] == ['panel/twin_age']
  assert page.data['tasks'] == ['catch']


def test_its_commands_make_the_same_runs(fake_library, sweep, tmp_path):
  assert not _report(str(sweep), f'--output={tmp_path / "a"}')
  text = ''.join(_Page(tmp_path / 'a.html').text).replace('\\\n', ' ')
  lines = [line for line in text.split('\n') if 'python -m' in line]
  assert len(lines) == 4  # each cell by its arguments, and by its flag file
  periods = []
  for line in lines:
    python, m, module, *arguments = shlex.split(line)
    assert (python, m, module) == ('python', '-m', 'experiments.classic')
    config = reading.from_arguments(classic.ClassicConfig, *arguments)
    assert config.run_dir.startswith('again/')
    periods.append(config.target_period)
  assert periods == [10, 10, 99, 99]


def test_single_runs_and_a_sweep_without_rows(fake_library, sweep, tmp_path):
  _run(tmp_path / 'x' / 'seed=0', '--seed=0')
  _run(tmp_path / 'x' / 'seed=1', '--seed=1')
  for name in ('one', 'two'):
    (sweep / name / 'metrics.csv').unlink()
  output = f'--output={tmp_path / "a.html"}'
  assert not _report(str(tmp_path / 'x'), str(sweep), output)
  page = _Page(tmp_path / 'a.html')
  assert page.data['lines'][0]['runs'] == 2
  assert '1 failed' in ' '.join(page.text)
  assert not _report(str(sweep), output, '--overwrite')
  assert 'No run has rows yet.' in ' '.join(_Page(tmp_path / 'a.html').text)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], '--runs must be given'),
    (['nowhere'], '--runs=nowhere must be a folder or a results file'),
    (
      ['{sweep}', '--column=x'],
      '--column=x must be one of train_return, panel',
    ),
    (['{sweep}', '--output={sweep}/no/a'], 'lie in a folder that exists'),
    (['{sweep}', '--output={there}'], 'it exists, and --overwrite replaces it'),
  ],
)
def test_bad_input(fake_library, sweep, tmp_path, capsys, arguments, words):
  there = tmp_path / 'there.html'
  there.write_text('mine')
  given = [a.format(sweep=sweep, there=there) for a in arguments]
  if not any('--output' in a for a in given):
    given.append(f'--output={tmp_path / "new"}')
  assert _report(*given) == 2
  assert words in capsys.readouterr().err
  assert there.read_text() == 'mine' and not (tmp_path / 'new.html').exists()


@pytest.mark.slow
def test_curves_are_drawn_in_a_browser(sweep, tmp_path):
  assert not _report(str(sweep), f'--output={tmp_path / "a"}')
  path = tmp_path / 'a.html'
  page = _Page(path)
  _check_loads_nothing(page)
  assert len(page.scripts) == 2
  browser = shutil.which('chromium')
  if browser is None:
    pytest.skip('needs Chromium')
  command = [browser, '--headless', '--no-sandbox', '--disable-gpu']
  command += ['--virtual-time-budget=5000', '--dump-dom', path.as_uri()]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert '<canvas' in done.stdout
  assert re.search(r'<td class="name">target_period=99</td>', done.stdout)
