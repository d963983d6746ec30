"""What .ci/readme.py reads out of the README."""

import pathlib
import re
import runpy

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
CI = runpy.run_path(str(ROOT / '.ci' / 'readme.py'))

TEXT = """
```bash
python3 -m venv .venv && pip install A && .venv/bin/python -m experiments.atari
python3 -m venv .venv && pip install A -U
```
```bash
python3 -m venv .venv && pip install B && .venv/bin/python -m pytest
```
`python -m experiments.lab` is no command, and this is no shell:
```python
.venv/bin/python -m experiments.offline
```
## One
```bash
.venv/bin/python -m experiments.lab --y
.venv/bin/python -m experiments.lab --z
```
## Two
```bash
pip install C
.venv/bin/python -m experiments.siamese
```
## Three
```bash
.venv/bin/python -m experiments.plot --runs=runs/pong-0,runs/pong-1
```
"""
ATARI, LAB, PLOT, SIAMESE = (
  f'.venv/bin/python -m experiments.{launcher}'
  for launcher in ('atari', 'lab', 'plot', 'siamese')
)
RUNS = '--runs=runs/pong-0,runs/pong-1'


def test_each_command_is_run_where_the_readme_says():
  first, newest, third = CI['environments'](TEXT)
  make = 'python3 -m venv .venv && pip install '
  assert first == (
    make + 'A',
    (ATARI, f'{LAB} --y', f'{LAB} --z', f'{PLOT} {RUNS}'),
  )
  # Nothing follows it, so that the first command is started.
  assert newest == (make + 'A -U', (ATARI,))
  assert third == (make + 'C', (SIAMESE,))


def test_what_is_drawn_is_run_before():
  (first, *_) = CI['environments'](TEXT)
  running, drawing = CI['stages'](first.commands)
  short = CI['SHORT']['atari']
  assert running[0] == f'{ATARI} {short}'
  assert running[-1] == f'{ATARI} --seed=1 {short}'
  assert drawing == [f'{PLOT} {RUNS} {CI["SHORT"]["plot"]}'.strip()]


def test_each_launcher_of_the_readme_is_started():
  started = {
    CI['_launcher'](command)
    for environment in CI['environments'](README)
    for command in environment.commands
  }
  assert started == CI['SHORT'].keys()
  blocks = ''.join(re.findall(r'(?ms)^```bash$.*?^```$', README))
  assert started == set(re.findall(r'-m experiments\.(\w+)', blocks))


@pytest.mark.parametrize('line', re.findall(r'.*pip install.*-e .*', README))
def test_each_install_line_makes_an_environment(line):
  made = [environment.install for environment in CI['environments'](README)]
  command = next(c for c in line.split(' && ') if 'pip install' in c)
  assert sum(command in m for m in made) == ('pytest' not in line)
