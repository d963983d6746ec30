"""Latent self-prediction by flags, in both loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import atari, classic, minatar
from experiments.config import (
  declaring,
  latent as latent_options,
  meaning,
  reading,
)
from experiments.engines import sweeps
from experiments.families import q
from siamrl.agents import latent
from siamrl.augment import shift
from siamrl.networks.activations import activations
from siamrl.networks.q_network import mlp_network
from siamrl.report.run_folder import RunFolder
from tests.experiments.launching import CATCH, sweep_here

SMALL = (*CATCH, '--spr_steps=2', '--spr_projections=6')


def _group(*arguments, config=classic.ClassicConfig, task=classic.make_task):
  """The one program of a command line."""
  sweep = reading.sweep_from_arguments(config, *arguments)
  meaning.check_meant(sweep.configs)
  for each in sweep.configs:
    q.check(each)
  tasks = {each: task(each) for each in sweep.configs}
  (group,) = sweeps.make_groups(sweep, tasks, q.FAMILY)
  return group


def _traced(group):
  """Shapes of a fresh state, of the next one, and of a row."""
  settings = group.runs[0].settings
  state = jax.eval_shape(group.loop.start, settings, jax.random.key(0))
  return state, *jax.eval_shape(group.loop.iterate, settings, state, 0)


@pytest.mark.slow
def test_runs_of_one_program_predict_with_weights_of_their_own():
  group = _group(*SMALL, '--replay=prioritized', '--spr_weight=0,2')
  start, iterate = jax.jit(group.loop.start), jax.jit(group.loop.iterate)
  rows = []
  for run in group.runs:
    state = start(run.settings, jax.random.key(0))
    for iteration in range(2):
      state, row = iterate(run.settings, state, iteration)
    rows.append(jax.device_get(row))
  assert rows[1]['gradient_steps'] == 35
  assert 0 < rows[1]['spr_loss'] < rows[0]['spr_loss'] < 4
  assert rows[0]['spr_std'] > 0


def test_columns_beside_a_panel_with_shadows():
  group = _group(
    *SMALL,
    '--target_update=by_path',
    '--target_paths=q:hard+latent:soft',
    '--tau=0.5',
    '--panel_period=1',
    '--probe_size=8',
    '--shadows=self',
  )
  state, after, row = _traced(group)
  assert state.probe.future.mask.shape == (8, 2)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert {
    'panel/srank',
    'panel/shadow_gap/self',
    'panel/twin_age/q/torso/Dense_0',
    'panel/twin_age/latent/encoder',
  } <= set(row)


def test_columns_of_minatar_with_noise_and_convolutions():
  pytest.importorskip('gymnax')
  group = _group(
    '--game=breakout',
    '--noise_channels=3',
    '--renormalize',
    '--spr_steps=3',
    '--spr_target=online_gradient',
    '--env_steps=50000',
    config=minatar.MinAtarConfig,
    task=minatar.make_task,
  )
  state, _, row = _traced(group)
  assert state.obs.shape == (1, 10, 10, 4 + 3)
  transition = state.train.online_params['transition']
  assert transition['Conv_0']['kernel'].shape == (3, 3, 16 + 6, 16)
  assert {'spr_loss', 'spr_std'} <= set(row)


def test_minatar_learns_from_moved_boards(monkeypatch):
  pytest.importorskip('gymnax')
  given = []
  original = latent.with_augmentation

  def recorder(agent, augment):
    given.append(augment)
    return original(agent, augment)

  monkeypatch.setattr(latent, 'with_augmentation', recorder)
  names = ('none', 'shift')
  for name in names:
    group = _group(
      f'--augmentation={name}',
      '--spr_steps=2',
      '--env_steps=50000',
      config=minatar.MinAtarConfig,
      task=minatar.make_task,
    )
    _, _, row = _traced(group)
    assert 'spr_loss' in row
    assert bool(given) == (name == 'shift')
  for augment in given:
    assert augment.func is shift and augment.keywords == dict(pixels=1)


def test_atari_draws_sequences_for_learner_and_panel(tmp_path):
  config = reading.from_arguments(
    atari.AtariConfig,
    '--spr_steps=2',
    '--augmentation=shift_intensity',
    '--replay_capacity=1000',
    '--panel_period=1',
    '--probe_size=8',
  )
  parts, _ = atari.build(config, RunFolder(tmp_path))
  assert parts.replay.sequence_steps == 2
  assert parts.seen.probe.future.obs.shape == (8, 2, 4, 84, 84)
  assert parts.seen.probe.future.a.dtype == jnp.int32
  rng = np.random.default_rng(0)
  frames = lambda: rng.integers(0, 256, (1, 84, 84), np.uint8)
  parts.replay.start(frames())
  no = np.zeros(1, bool)
  for _ in range(40):
    parts.replay.add(
      action=np.zeros(1, int),
      reward=np.zeros(1, np.float32),
      terminated=no,
      ended=no,
      final_obs=frames(),
      obs=frames(),
    )
  drawn, _ = parts.replay.sample(rng, 8)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(drawn) == shapes(parts.seen.probe)


def test_looking_into_a_network_within_an_agent():
  network, obs = mlp_network(3, sizes=(4,)), np.ones((2, 5), np.float32)
  params = network.init(jax.random.key(0), obs)
  for steps in (0, 1):
    config = latent_options.LatentOptions(spr_steps=steps)
    looked_at = latent_options.looked_at(config, network)
    answer = activations(looked_at, {'q': params} if steps else params, obs)
    np.testing.assert_array_equal(answer.values, network.apply(params, obs))
    assert set(answer.layers) == {'torso/Dense_0'}


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      ('--replay=none', '--batch_size=20', '--spr_steps=1'),
      '--spr_steps=1 must be 0 for --replay=none',
    ),
    (
      ('--target_form=clipped_double', '--spr_steps=1'),
      '--spr_steps=1 must be 0 for --target_form=clipped_double',
    ),
    (
      ('--target_update=projected_soft', '--tau=0.1', '--ridge=0')
      + ('--projection_radius=1', '--spr_steps=1'),
      '--spr_steps=1 must be 0 for --target_update=projected_soft',
    ),
    (
      ('--spr_target=online_gradient',),
      '--spr_target=online_gradient must go with --spr_steps=1 or more',
    ),
    (('--spr_projections=3',), '--spr_projections=3 must go with --spr_steps'),
    (('--spr_weight=0',), r'--spr_weight=0\.0 must go with --spr_steps'),
    (
      ('--spr_steps=1',),
      '--spr_steps=1 must go with --spr_projections here: the head has no h',
    ),
  ],
)
def test_what_does_not_go_together(arguments, message):
  with (
    pytest.raises(declaring.UsageError, match=message),
    declaring.usage_errors(),
  ):
    group = _group('--environment=catch', *arguments)
    settings = group.runs[0].settings
    jax.eval_shape(group.loop.start, settings, jax.random.key(0))


def test_a_sweep_does_not_cross_what_means_nothing():
  sweep = reading.sweep_from_arguments(
    classic.ClassicConfig,
    '--spr_steps=0,2',
    '--spr_weight=1,2',
    '--spr_projections=8',
  )
  assert [(c.spr_steps, c.spr_weight) for c in sweep.configs] == [
    (0, 5.0),
    (2, 1.0),
    (2, 2.0),
  ]


def test_atari_refuses_them_too(tmp_path):
  output = sweep_here(
    atari, '--spr_weight=1', f'--run_dir={tmp_path}/run', code=2
  )
  assert 'must go with --spr_steps' in output
