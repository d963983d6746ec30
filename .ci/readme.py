"""Runs the README's commands in environments made by its install lines.

  python3 .ci/readme.py

Tests run where all packages are. Users have fewer: those of the install line
that they followed. So each environment is made as the README says, in a copy of
this checkout, and every launcher that the README starts there is started, with
its work cut down to seconds. The command that runs the tests is not among them.
"""

import collections
from collections.abc import Iterator
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = 'python3 -m venv .venv'
LAUNCH = '.venv/bin/python -m experiments.'
LIMIT_S = 600  # of one command
# Options of XLA that compile in about half the time, as in tests/conftest.py.
COMPILE_FAST = (
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false '
  '--xla_cpu_parallel_codegen_split_count=1'
)
# Flags that cut a run down to seconds, yet let it learn, evaluate and draw. The
# numbers of frames are divisible by what is played between two gradient steps.
_HOST = '--min_replay=200 --replay_capacity=1000 '
_STEPS = '--env_steps=1000 --iteration_env_steps=500 --min_replay=200'
SHORT = {
  'atari': _HOST + '--frames=960 --iteration_frames=960 --eval_frames=0 '
  '--eval_episodes=1 --frame_cap=400',
  'benchmark': '--rounds=1 --steps=2',
  'classic': _STEPS,
  'compare': '',
  'control': _HOST + '--env_steps=400 --iteration_env_steps=200 '
  '--random_env_steps=200 --batch_size=32 --eval_episodes=1',
  'enjoy': '--frames=100',
  'export': '',
  'gym': _HOST + '--env_steps=400 --iteration_env_steps=200 --eval_episodes=1',
  'lab': '',
  'minatar': _STEPS + ' --replay_capacity=1000 --game=breakout --seeds=1',
  'offline': '--iterations=2 --target_period=20 --collect_env_steps=1000',
  'plot': '',
  'reproduce': '',
  'siamese': '--epochs=2 --iteration_epochs=1',
}
# Tools that read run folders.
READING = ('enjoy', 'export', 'plot')


class Environment(NamedTuple):
  """An environment that the README makes, and what it starts there.

  Attributes:
    install: the command that makes it.
    commands: that start a launcher in it.
  """

  install: str
  commands: tuple[str, ...]


def _lines(readme: str) -> Iterator[tuple[str, str]]:
  """The commands in blocks of code, each with the section that it is in."""
  section, code = '', False
  for line in readme.splitlines():
    if line.startswith('```'):
      code = not code and line == '```bash'
    elif code:
      yield section, line
    elif line.startswith('## '):
      section = line


def environments(readme: str) -> list[Environment]:
  """The environments that a README makes, the first one first.

  A launcher is started in the environment of its section's install line, or,
  where there is none, in that of the first command. In an environment whose
  install line nothing follows, the first command of the first one is started.
  """
  installs: dict[str, str] = {}  # of a section
  commands = collections.defaultdict[str, list[str]](list)
  first = ''
  for section, line in _lines(readme):
    if 'pytest' in line:
      continue
    parts = line.split(' && ')
    install = ' && '.join(part for part in parts if LAUNCH not in part)
    if install:
      if VENV not in install:
        install = f'{VENV} && {install}'
      commands[install]  # in its place, even if nothing follows
      first = first or install
      if section:
        installs[section] = install
    commands[install or installs.get(section, first)] += [
      part for part in parts if LAUNCH in part
    ]
  return [
    Environment(install, tuple(found or commands[first][:1]))
    for install, found in commands.items()
  ]


def _launcher(command: str) -> str:
  return command.removeprefix(LAUNCH).split()[0]


def stages(commands: tuple[str, ...]) -> list[list[str]]:
  """Shortened commands, those that read what others have run after these.

  What is read may be two seeds of one run, of which the README starts one.
  """
  drawing = [c for c in commands if _launcher(c) in READING]
  running = [c for c in commands if _launcher(c) not in READING]
  started = ' '.join(running)
  for run in re.findall(r'runs/[\w-]+', ' '.join(drawing)):
    if f'={run}' not in started and not run.endswith('-0'):
      running.append(f'{running[0]} --seed={run.rpartition("-")[2]}')
  return [
    [f'{c} {SHORT[_launcher(c)]}'.strip() for c in stage]
    for stage in (running, drawing)
    if stage
  ]


def variables(install: str) -> dict[str, str]:
  """Of the shell, for launchers in the environment of an install line.

  The newest JAX, which no lock holds back, may not know the same options of
  XLA. It compiles as users have it.
  """
  return {'XLA_FLAGS': COMPILE_FAST} if '-c .ci/lock.txt' in install else {}


def _run(
  command: str, folder: pathlib.Path, environment: dict[str, str]
) -> str:
  """Runs a command; returns what it printed if it failed, and else nothing."""
  begun = time.monotonic()
  try:
    done = subprocess.run(
      ['bash', '-euo', 'pipefail', '-c', command],
      cwd=folder,
      env=os.environ | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=LIMIT_S,
      check=False,
    )
    failure = done.stdout if done.returncode else ''
  except subprocess.TimeoutExpired:
    failure = f'not done after {LIMIT_S} s\n'
  seconds = time.monotonic() - begun
  word = 'FAILED' if failure else 'ok'
  print(f'{word:6} {seconds:4.0f} s  {command}', flush=True)
  return failure and f'+ {command}\n{failure}'


def _try(environment: Environment, folder: pathlib.Path) -> list[str]:
  """Makes an environment and starts its launchers; returns what failed."""
  ignored = shutil.ignore_patterns(
    '.git', '.venv', '.*_cache', '*.egg-info', 'build', 'runs'
  )
  shutil.copytree(ROOT, folder, ignore=ignored)
  shell = variables(environment.install)
  made = _run(f'{environment.install} && .venv/bin/pip check', folder, shell)
  failures = [made] if made else []
  if not made:
    for stage in stages(environment.commands):
      failures += filter(None, [_run(c, folder, shell) for c in stage])
  shutil.rmtree(folder)  # an environment takes a gigabyte
  return failures


def main() -> int:
  found = environments((ROOT / 'README.md').read_text(encoding='utf-8'))
  with tempfile.TemporaryDirectory() as temporary:
    top = pathlib.Path(temporary)
    # Programs compiled in one environment serve the others; Python's are
    # compiled as they are imported, which is a part of them only.
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(top / 'cache')
    os.environ['PIP_COMPILE'] = '0'
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      folders = [top / str(number) for number in range(len(found))]
      failures = sum(pool.map(_try, found, folders), [])
  print(*failures, sep='\n')
  return 1 if failures else 0


if __name__ == '__main__':
  sys.exit(main())
