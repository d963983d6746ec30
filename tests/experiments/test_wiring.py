"""Every flag of the Atari launcher reaches the part that it speaks of."""

import numpy as np
import pytest

from experiments import atari, classic
from experiments.config import latent as latent_options, reading
from experiments.engines import host_runs
from experiments.families import q
from experiments.suites import ale
from siamrl import augment, learner, twins
from siamrl.agents import latent, registry
from siamrl.report.run_folder import RunFolder

# No value here is the default.
FLAGS = (
  '--game=breakout',
  '--num_envs=2',
  '--seed=3',
  '--sticky_action_probability=0.125',
  '--noop_max=7',
  '--fire_on_reset',
  '--frame_skip=3',
  '--frame_cap=999',
  '--full_action_set',
  '--agent=double_dqn',
  '--target_form=double',
  '--head=dueling',
  '--padding=SAME',
  '--initializer=xavier_uniform',
  '--layer_norm',
  '--noisy_std=0.375',
  '--hidden_units=24',
  '--renormalize',
  '--spr_steps=3',
  '--spr_weight=2.5',
  '--spr_target=online_gradient',
  '--spr_transition=dense',
  '--spr_projections=16',
  '--augmentation=shift',
  '--discount=0.5',
  '--n_step=5',
  '--reward_clip=2.5',
  '--nolife_loss_terminates',
  '--optimizer=adam',
  '--learning_rate=0.125',
  '--optimizer_eps=0.25',
  '--rmsprop_decay=0.375',
  '--anneal_learning_rate',
  '--max_gradient_norm=2',
  '--td_loss=huber',
  '--error_bound=0.75',
  '--batch_reduction=mean',
  '--param_dtype=bfloat16',
  '--batch_size=8',
  '--churn_weight=0.25',
  '--train_period=2',
  '--min_replay=100',
  '--replay_capacity=500',
  '--replay=prioritized',
  '--priority=loss',
  '--priority_exponent=0.75',
  '--importance_start=0.25',
  '--importance_end=0.5',
  '--acting=overlapped',
  '--epsilon_start=0.9',
  '--epsilon_end=0.3',
  '--epsilon_hold=10',
  '--epsilon_decay=30',
  '--frames=2400',
  '--iteration_frames=1200',
  '--target_period=6',
  '--target_period_unit=frames',
  '--target_order=before',
  '--target_init=fresh',
  '--reset_optimizer',
  '--eval_episodes=1',
  '--eval_frames=0',
)


@pytest.fixture
def calls(monkeypatch, tmp_path):
  """Builds a run; the arguments with which its parts were made."""
  recorded: dict[str, list] = {}

  def record(module, name):
    original = getattr(module, name)

    def recorder(*args, **kwargs):
      recorded.setdefault(name, []).append((args, kwargs))
      return original(*args, **kwargs)

    # What a class has besides, such as the size of a replay not yet made.
    for attribute in dir(original):
      if not attribute.startswith('_'):
        setattr(recorder, attribute, getattr(original, attribute))
    monkeypatch.setattr(module, name, recorder)

  record(ale, 'AtariProtocol')
  record(ale, 'AtariEnvironments')
  record(host_runs, 'HostReplay')
  record(host_runs, 'PrioritizedHostReplay')
  record(ale, 'nature_network')
  record(host_runs.host, 'LoopConfig')
  record(registry, 'make_agent')
  record(latent_options, 'latent_networks')
  record(latent, 'with_latent_prediction')
  record(augment, 'of_frames')
  record(latent, 'with_augmentation')
  record(learner, 'make_optimizer')
  record(learner, 'make_learner')
  config = reading.from_arguments(atari.AtariConfig, *FLAGS)
  parts, _ = atari.build(config, RunFolder(tmp_path))
  parts.loop.keywords['make_environments'](0).close()
  return recorded


def test_protocol_and_environments(calls):
  ((), protocol) = calls['AtariProtocol'][0]
  assert protocol == dict(
    sticky_action_probability=0.125,
    noop_max=7,
    frame_skip=3,
    frame_cap=999,
    full_action_set=True,
    fire_on_reset=True,
  )
  looked_at, stepped = calls['AtariEnvironments']
  assert looked_at[0] == ('breakout', 1)
  assert stepped[0] == ('breakout', 2)


def test_agent_and_network(calls):
  ((num_actions,), network) = calls['nature_network'][0]
  assert num_actions == 18
  assert network == dict(
    head='dueling',
    padding='SAME',
    initializer='xavier_uniform',
    layer_norm=True,
    hidden_units=24,
    renormalize=True,
    torso=None,
    outputs=1,
    noisy_std=0.375,
  )
  (name, *_), parts = calls['make_agent'][0]
  assert (name, parts['given']) == ('double_dqn', {})
  assert parts['shared'] == dict(
    target_form='double',
    target_parameters={},
    td_loss='huber',
    error_bound=0.75,
    batch_reduction='mean',
    param_dtype='bfloat16',
  )


def test_latent_prediction(calls):
  assert calls['latent_networks'][0][1] == dict(
    transition='dense', projections=16, inside_loop=False
  )
  assert calls['with_latent_prediction'][0][1] == dict(
    steps=3, weight=2.5, target='online_gradient', batch_reduction='mean'
  )
  (augmentation,), _ = calls['of_frames'][0]
  assert augmentation.keywords == dict(pixels=4)
  # Once for each learner; one of them only tells how much memory it takes.
  assert len(calls['with_augmentation']) == len(calls['make_learner'])


def test_learning(calls):
  assert calls['make_optimizer'][0] == (
    ('adam',),
    dict(
      learning_rate=0.125,
      eps=0.25,
      decay=0.375,
      # 700 env steps after the warm-up, a gradient step every 2.
      anneal_steps=350,
      max_gradient_norm=2.0,
      kappa=2.0,
    ),
  )
  (_, _, clocked, act_with, churn_weight), _ = calls['make_learner'][0]
  # 6 frames are 2 env steps, 1 gradient step.
  assert clocked[1:] == (1, 0, 'before', 'fresh', True)
  assert act_with == 'online'
  assert churn_weight == 0.25


def test_replay_and_loop(calls):
  (capacity, *_), replay = calls['PrioritizedHostReplay'][0]
  assert capacity == 500
  beta = replay.pop('beta')
  assert [beta(t) for t in (0, 400, 800)] == [0.25, 0.375, 0.5]
  assert replay == dict(
    alpha=0.75,
    metric='transition_loss',
    frame_shape=(84, 84),
    frame_dtype=np.uint8,
    num_envs=2,
    stack=4,
    n_step=5,
    discount=0.5,
    action_dim=0,
    sequence_steps=3,
  )
  loop = dict(calls['LoopConfig'][0][1])
  epsilon = loop.pop('epsilon')
  assert [epsilon(t) for t in (0, 10, 25, 40, 99)] == pytest.approx(
    [0.9, 0.9, 0.6, 0.3, 0.3]
  )
  assert loop == dict(
    schedule=(2, 1),
    total_env_steps=800,
    iteration_env_steps=400,
    warmup_env_steps=100,
    batch_size=16,  # half of it for reference
    reward_clip=2.5,
    life_loss_terminates=False,
    overlapped=True,
  )


def test_the_priorities_of_compiled_runs():
  config = reading.from_arguments(
    classic.ClassicConfig, '--replay=prioritized', '--priority=loss'
  )
  replay = q.make_loop(config, classic.make_task(config)).replay
  assert replay.reads == ('transition_loss',)


@pytest.mark.parametrize(
  'rule, sync',
  [
    ('hard', 50),
    ('periodic_soft', 50),
    ('soft', 1),
    ('frozen', twins.NEVER),
    ('averaged', 50),
    # These count by themselves.
    ('hard_scheduled', 1),
    ('by_path', 1),
    # What else there is of these kinds.
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('self', 1),
        ('functional', 50),
        ('iterated_heads', 50),
        ('gradient_chain', 50),
        ('proximal', 50),
        ('soft_cosine', 1),
        ('soft_linear', 1),
        ('t_soft', 1),
        ('hard_geometric', 1),
        ('hard_random', 1),
        ('chain', 1),
        ('residual', 1),
        ('projected_soft', 1),
      )
    ),
  ],
)
def test_the_period_of_every_rule(rule, sync, tmp_path):
  given = dict(
    tau=0.5,
    tau_end=0.25,
    target_period_end=400,
    target_period_growth=1.5,
    degrees_of_freedom=1,
    target_schedule_steps=100,
    target_count=2,
    target_sync_period=100,
    target_paths='torso:soft+head:hard',
    twin_weight=0.5,
    projection_radius=100,
    ridge=0.1,
  )
  takes = twins.takes(rule, given['target_paths'])
  config = reading.from_arguments(
    atari.AtariConfig,
    f'--target_update={rule}',
    '--target_period=200',
    '--replay_capacity=100000',
    *(f'--{name}={given[name]}' for name in takes if name in given),
  )
  _, derived = atari.build(config, RunFolder(tmp_path))
  assert derived['schedule']['sync'] == sync


@pytest.mark.parametrize('given', [True, False])
def test_fresh_environments(given, tmp_path):
  config = reading.from_arguments(
    atari.AtariConfig,
    '--replay_capacity=100000',
    f'--fresh_environments={str(given).lower()}',
  )
  parts, _ = atari.build(config, RunFolder(tmp_path))
  assert parts.fresh_environments == given


def test_every_rule_has_its_period_tested():
  (mark,) = test_the_period_of_every_rule.pytestmark
  covered = {getattr(case, 'values', case)[0] for case in mark.args[1]}
  assert covered == set(twins.RULES)


@pytest.mark.parametrize('frames, episodes', [(4_000, True), (40, False)])
def test_a_budget_of_frames_for_evaluation(frames, episodes, tmp_path):
  config = reading.from_arguments(
    atari.AtariConfig,
    '--frame_cap=1200',
    '--replay_capacity=100000',
    f'--eval_frames={frames}',
    '--eval_epsilon=1',
  )
  parts, _ = atari.build(config, RunFolder(tmp_path))
  evaluation = parts.evaluate(parts.state, 0)
  while True:
    try:
      next(evaluation)
    except StopIteration as end:
      row = end.value
      break
  assert row['eval_frames'] == frames
  # 1,000 env steps: three episodes of 300 end within them.
  assert row['eval_episodes'] == (3 if episodes else 0)
  assert (row['eval_return'] == row['eval_return']) == episodes
