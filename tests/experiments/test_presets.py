"""The presets say what was published; the numbers here are from the sources."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from experiments.atari import AtariConfig
from experiments.classic import ClassicConfig
from experiments.config import (
  collecting as collect_options,
  meaning,
  reading,
)
from experiments.families import actor_critic, q
from experiments.gym import GymConfig, check
from experiments.minatar import MinAtarConfig
from siamrl.schedule import to_gradient_steps
from tests.experiments import resolved

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = pathlib.Path('experiments/flagfiles')
# Sweeps. Those of lab and offline launcher have tests of their own.
GRIDS = (
  'quickstart_sweep',
  'twin_grid_cartpole',
  'twin_age_cartpole',
  'twin_age_catch',
  'soft_divergence',
  'twin_minatar',
  'target_free_gap',
  'spr_minatar',
  'siamese_collapse',
  'siamese_accuracy',
  'siamese_frames',
  'twin_rate',
  'minatar_table_dqn',
  'minatar_table_double',
  'minatar_table_prioritized',
  'minatar_table_n_step',
  'minatar_table_c51',
  'minatar_table_qrdqn',
  'minatar_table_iqn',
  'minatar_table_rainbow',
  'minatar_table_m_iqn',
  'minatar_table_pqn',
  'minatar_table_stream_q',
  'twin_agreement',
  'twin_distributions_dqn',
  'twin_distributions_c51',
  'twin_distributions_qrdqn',
  'atlas_rules',
  'atlas_minto',
  'atlas_catch',
  'atlas_cartpole',
  'atlas_pendulum',
  'atlas_breakout',
  'atlas_asterix',
  'atlas_discrete_rules',
  'twin_defects_cartpole',
  'twin_defects_breakout',
  'replay_and_twin',
  'twin_defects_pendulum',
  'twin_defects_normalized',
)
GYM = ('zoo_dqn_lunar_lander', 'zoo_qrdqn_lunar_lander')
PRESETS = sorted(
  path.stem
  for path in (ROOT / FOLDER).glob('*.flags')
  if path.stem not in (*GRIDS, *GYM)
  and not path.stem.startswith(('lab_', 'fqi_', 'td3', 'sac', 'ddpg', 'crossq'))
  and path.stem not in ('cleanrl_ddpg', 'cleanrl_td3', 'cleanrl_sac')
)
PARENTS = {
  'dqn_zoo_dqn': 'nature_dqn',
  'dqn_zoo_double_dqn': 'dqn_zoo_dqn',
  'dqn_zoo_prioritized': 'dqn_zoo_double_dqn',
  'dopamine_dqn': 'nature_dqn',
  'cleanrl_dqn_atari': 'nature_dqn',
  'spr_atari_100k': 'nature_dqn',
  'quickstart': 'dopamine_dqn',
  'cleanrl_dqn_acrobot': 'cleanrl_dqn_cartpole',
  'dopamine_dqn_acrobot': 'dopamine_dqn_cartpole',
  'dqn_zoo_c51': 'dqn_zoo_dqn',
  'dqn_zoo_qrdqn': 'dqn_zoo_dqn',
  'dqn_zoo_iqn': 'dqn_zoo_dqn',
  'dopamine_c51': 'dopamine_dqn',
  'dopamine_iqn': 'dopamine_dqn',
  'dqn_zoo_rainbow': 'dqn_zoo_c51',
  'dopamine_rainbow': 'dopamine_c51',
  'dopamine_quantile': 'dopamine_dqn',
  'der_atari_100k': 'dopamine_rainbow',
  'cleanrl_c51_cartpole': 'cleanrl_dqn_cartpole',
  'cleanrl_c51_acrobot': 'cleanrl_c51_cartpole',
  'cleanrl_pqn_acrobot': 'cleanrl_pqn_cartpole',
}
# Those of compiled runs; the others are Atari's.
COMPILED: dict[str, type[q.CompiledConfig]] = {
  'cleanrl_dqn_cartpole': ClassicConfig,
  'cleanrl_dqn_acrobot': ClassicConfig,
  'cleanrl_c51_cartpole': ClassicConfig,
  'cleanrl_c51_acrobot': ClassicConfig,
  'cleanrl_pqn_cartpole': ClassicConfig,
  'cleanrl_pqn_acrobot': ClassicConfig,
  'dopamine_dqn_cartpole': ClassicConfig,
  'dopamine_dqn_acrobot': ClassicConfig,
  'minatar_dqn': MinAtarConfig,
  'dopamine_dqn_minatar': MinAtarConfig,
  'pqn_cartpole': ClassicConfig,
  'pqn_minatar': MinAtarConfig,
  'stream_q_minatar': MinAtarConfig,
  'qrc_minatar': MinAtarConfig,
}

# Mnih et al. (2015), Methods and Extended Data Table 1, and its Lua code
# (train_agent.lua, NeuralQLearner.lua, run_gpu); in env steps unless named.
NATURE = {
  'agent': 'dqn',
  'batch_size': 32,
  'replay_capacity': 1_000_000,
  'min_replay': 50_000,
  'train_period': 4,
  'discount': 0.99,
  'n_step': 1,
  'optimizer': 'rmsprop_centered',
  'learning_rate': 0.00025,
  'rmsprop_decay': 0.95,
  'optimizer_eps': 0.01,
  'td_loss': 'clipped',
  'error_bound': 1,
  'batch_reduction': 'sum',
  'reward_clip': 1,
  'life_loss_terminates': True,
  'epsilon_start': 1,
  'epsilon_end': 0.1,
  'epsilon_hold': 50_000,
  'epsilon_decay': 1_000_000,
  'eval_epsilon': 0.05,
  'noop_max': 30,
  'frame_skip': 4,
  'frames': 200_000_000,
  'iteration_frames': 1_000_000,
  'eval_frames': 500_000,
  'eval_episodes': 0,
  'frame_cap': 108_000,
  'target_update': 'hard',
  'tau': None,
  'sticky_action_probability': 0,
  'full_action_set': False,
  'fire_on_reset': False,
  'head': 'linear',
  'padding': 'VALID',
  'initializer': 'torch_uniform',
  'acting': 'exact',
  'num_envs': 1,
}
# dqn_zoo/dqn/run_atari.py, networks.py: means over batches of 32, for which
# eps is 0.01 / 32**2; exploration decays over 2 % of 200 million frames.
DQN_ZOO_DQN = NATURE | {
  'batch_reduction': 'mean',
  'optimizer_eps': 0.01 / 32**2,
  'epsilon_decay': 4_000_000 // 4,
  'epsilon_hold': 200_000 // 4,
}
# dqn_zoo/double_q/run_atari.py.
DQN_ZOO_DOUBLE_DQN = DQN_ZOO_DQN | {
  'agent': 'double_dqn',
  'head': 'shared_bias',
  'epsilon_end': 0.01,
  'eval_epsilon': 0.01,
}
# dqn_zoo/prioritized/run_atari.py.
DQN_ZOO_PRIORITIZED = DQN_ZOO_DOUBLE_DQN | {
  'replay': 'prioritized',
  'priority_exponent': 0.6,
  'importance_start': 0.4,
  'importance_end': 1,
  'learning_rate': 0.00025 / 4,
  'optimizer_eps': (0.01 / 32**2) * (1 / 4) ** 2,
}
# dqn_zoo/c51/run_atari.py.
DQN_ZOO_C51 = DQN_ZOO_DQN | {
  'agent': 'c51',
  'num_atoms': 51,
  'v_min': -10,
  'v_max': 10,
  'optimizer': 'adam',
  'learning_rate': 0.00025,
  'optimizer_eps': 0.01 / 32,
  'max_gradient_norm': 10,
  'epsilon_end': 0.01,
  'eval_epsilon': 0.001,
}
# dqn_zoo/qrdqn/run_atari.py.
DQN_ZOO_QRDQN = DQN_ZOO_C51 | {
  'agent': 'qrdqn',
  'num_atoms': None,
  'v_min': None,
  'v_max': None,
  'quantiles': 201,
  'error_bound': 1,
  'learning_rate': 0.00005,
}
# dqn_zoo/iqn/run_atari.py, networks.py; it does not clip gradients.
DQN_ZOO_IQN = DQN_ZOO_QRDQN | {
  'agent': 'iqn',
  'quantiles': None,
  'fractions': 64,
  'target_fractions': 64,
  'acting_fractions': 64,
  'cosines': 64,
  'max_gradient_norm': 0,
}
# dopamine/jax/agents/dqn: configs/dqn.gin, dqn_agent.py; jax/networks.py.
DOPAMINE = NATURE | {
  'min_replay': 20_000,
  'epsilon_end': 0.01,
  'epsilon_hold': 20_000,
  'epsilon_decay': 250_000,
  'eval_epsilon': 0.001,
  'optimizer': 'adam',
  'learning_rate': 6.25e-5,
  'optimizer_eps': 1.5e-4,
  'td_loss': 'squared',
  'batch_reduction': 'mean',
  'sticky_action_probability': 0.25,
  'noop_max': 0,
  'life_loss_terminates': False,
  'padding': 'SAME',
  'initializer': 'xavier_uniform',
  'eval_frames': 0,
}
# dopamine/jax/agents/rainbow: configs/c51.gin, rainbow_agent.py.
DOPAMINE_C51 = DOPAMINE | {
  'agent': 'c51',
  'num_atoms': 51,
  'v_min': -10,
  'v_max': 10,
  'learning_rate': 0.00025,
  'optimizer_eps': 0.0003125,
  'initializer': 'dopamine_uniform',
}
# dopamine/jax/agents/implicit_quantile: configs/implicit_quantile.gin.
DOPAMINE_IQN = DOPAMINE | {
  'agent': 'iqn',
  'fractions': 64,
  'target_fractions': 64,
  'acting_fractions': 32,
  'cosines': 64,
  'n_step': 3,
  'learning_rate': 0.00005,
  'optimizer_eps': 0.0003125,
  'initializer': 'dopamine_uniform',
}
# cleanrl/dqn_atari_jax.py.
CLEANRL = NATURE | {
  'game': 'breakout',
  'frames': 4 * 10_000_000,
  'min_replay': 80_000,
  'optimizer': 'adam',
  'learning_rate': 1e-4,
  'optimizer_eps': 1e-8,
  'td_loss': 'squared',
  'batch_reduction': 'mean',
  'epsilon_end': 0.01,
  'epsilon_hold': 0,
  'epsilon_decay': 10_000_000 // 10,
  'initializer': 'lecun_normal',
  'fire_on_reset': True,
  'eval_frames': 0,
  'eval_episodes': 10,
  'eval_epsilon': 0.01,
}
# mila-iqia/spr: scripts/run.py, src/utils.py, and rlpyt's atari_dqn.py. Of each
# env step 64 transitions are learned, in batches of 32. Exploration is that of
# dopamine/labs/atari_100k/configs/DrQ_eps.gin.
SPR = NATURE | {
  'frames': 4 * 100_000,
  'iteration_frames': 4 * 100_000,
  'replay_capacity': 120_000,
  'min_replay': 2_000,
  'train_period': 1,
  'train_steps': 64 // 32,
  'head': 'dueling',
  'hidden_units': 256,
  'renormalize': True,
  'n_step': 10,
  'td_loss': 'huber',
  'error_bound': 1,
  'batch_reduction': 'mean',
  'optimizer': 'adam',
  'learning_rate': 1e-4,
  'optimizer_eps': 1.5e-4,
  'max_gradient_norm': 10,
  'augmentation': 'shift_intensity',
  'target_update': 'self',
  'spr_steps': 5,
  'spr_weight': 5,
  'spr_target': 'twin',
  'spr_transition': 'conv',
  'spr_projections': None,
  'epsilon_end': 0.01,
  'epsilon_hold': 2_000,
  'epsilon_decay': 5_000,
  'eval_frames': 0,
  'eval_episodes': 100,
  'eval_epsilon': 0.001,
}
# mttga/purejaxql: config/alg/pqn_atari.yaml, pqn_atari.py; EnvPool's defaults.
# A round is of 128 emulators and 32 steps, learned from in 2 epochs of 32
# minibatches.
PQN_ATARI = NATURE | {
  'game': 'pong',
  'frames': 4 * 128 * 32 * 12_200,  # of 5e7 agent steps
  'num_envs': 128,
  'train_period': 128 * 32,
  'train_steps': 2 * 32,
  'batch_size': 128 * 32 // 32,
  'min_replay': 0,
  'iteration_frames': 4 * 128 * 32 * 61,
  'replay': 'none',
  'q_lambda': 0.65,
  'q_trace': 'peng',
  'target_update': 'self',
  'optimizer': 'radam',
  'learning_rate': 0.00025,
  'optimizer_eps': 1e-8,  # optax's default
  'anneal_learning_rate': False,
  'max_gradient_norm': 10,
  'td_loss': 'half_squared',
  'batch_reduction': 'mean',
  'epsilon_end': 0.001,
  'epsilon_hold': 0,
  'epsilon_decay': 50_000_000 // 10,
  'fire_on_reset': True,
  'initializer': 'he_normal',
  'layer_norm': True,
  'hidden_units': 512,
  'eval_frames': 0,
  'eval_episodes': 8,
  'eval_envs': 8,
  'eval_epsilon': 0,
}
# What all of the compiled presets are.
PLAIN = {
  'num_envs': 1,
  'agent': 'dqn',
  'head': 'linear',
  'n_step': 1,
  'reward_clip': 0,
  'discount': 0.99,
  'target_update': 'hard',
  'tau': None,
  'batch_reduction': 'mean',
  'replay': 'uniform',
  'seeds': 1,
}
# cleanrl/dqn_jax.py.
CLEANRL_CARTPOLE = PLAIN | {
  'environment': 'cartpole',
  'env_steps': 500_000,
  'hidden_sizes': '120-84',
  'initializer': 'lecun_normal',  # flax's default
  'rescale_observations': False,
  'optimizer': 'adam',
  'learning_rate': 2.5e-4,
  'optimizer_eps': 1e-8,  # optax's default
  'td_loss': 'squared',
  'replay_capacity': 10_000,
  'batch_size': 128,
  'min_replay': 10_000,
  'train_period': 10,
  'epsilon_start': 1,
  'epsilon_end': 0.05,
  'epsilon_hold': 0,
  'epsilon_decay': 500_000 // 2,
}
# cleanrl/c51_jax.py.
CLEANRL_C51_CARTPOLE = CLEANRL_CARTPOLE | {
  'agent': 'c51',
  'num_atoms': 101,
  'v_min': -100,
  'v_max': 100,
  'optimizer_eps': 0.01 / 128,
}
# cleanrl/pqn.py: rounds of 4 environments and 128 steps, learned from in 4
# epochs of 4 minibatches.
CLEANRL_PQN_CARTPOLE = {
  'environment': 'cartpole',
  'env_steps': 500_000 // (4 * 128) * (4 * 128),
  'num_envs': 4,
  'train_period': 4 * 128,
  'train_steps': 4 * 4,
  'batch_size': 4 * 128 // 4,
  'min_replay': 0,
  'replay': 'none',
  'q_lambda': 0.65,
  'q_trace': 'peng',
  'target_update': 'self',
  'hidden_sizes': '120-84',
  'layer_norm': True,
  'initializer': 'orthogonal',
  'discount': 0.99,
  'reward_scale': 1,
  'reward_clip': 0,
  'optimizer': 'radam',
  'learning_rate': 2.5e-4,
  'optimizer_eps': 1e-8,  # PyTorch's default
  'anneal_learning_rate': True,
  'max_gradient_norm': 10,
  'td_loss': 'squared',
  'batch_reduction': 'mean',
  'epsilon_start': 1,
  'epsilon_end': 0.05,
  'epsilon_hold': 0,
  'epsilon_decay': 500_000 // 2,
}
# DLR-RM/rl-baselines3-zoo: hyperparams/dqn.yml; stable_baselines3/dqn/dqn.py.
ZOO_DQN = PLAIN | {
  'environment': 'LunarLander-v3',
  'env_steps': 100_000,
  'hidden_sizes': '256-256',
  'initializer': 'torch_uniform',
  'target_period': 250,
  'target_period_unit': 'env_steps',
  'optimizer': 'adam',
  'learning_rate': 6.3e-4,
  'optimizer_eps': 1e-8,  # PyTorch's default
  'anneal_learning_rate': False,
  'max_gradient_norm': 10,
  'td_loss': 'huber',  # smooth_l1_loss
  'error_bound': 1,
  'replay_capacity': 50_000,
  'batch_size': 128,
  'train_period': 4,
  'train_steps': 4,
  'epsilon_start': 1,
  'epsilon_end': 0.1,
  'epsilon_hold': 0,
  'epsilon_decay': 12_000,
  'eval_epsilon': 0,
}
# The same: hyperparams/qrdqn.yml; sb3_contrib/qrdqn/qrdqn.py.
ZOO_QRDQN = ZOO_DQN | {
  'env_steps': 100_000 // 256 * 256,
  'agent': 'qrdqn',
  'quantiles': 170,
  'discount': 0.995,
  'target_period': 256,
  'target_period_unit': 'gradient_steps',
  'learning_rate': 1.5e-3,
  'optimizer_eps': 0.01 / 128,
  'anneal_learning_rate': True,
  'max_gradient_norm': 0,
  'replay_capacity': 100_000,
  'min_replay': 10_000,
  'train_period': 256,
  'train_steps': 256,
  'epsilon_end': 0.18,
  'epsilon_decay': 24_000,
}
# dopamine/jax/agents/dqn/configs/dqn_cartpole.gin; jax/networks.py.
DOPAMINE_CARTPOLE = PLAIN | {
  'environment': 'cartpole_v0',
  'env_steps': 100 * 1_000,
  'iteration_env_steps': 1_000,
  'hidden_sizes': '512-512',
  'initializer': 'xavier_uniform',
  'rescale_observations': True,
  'optimizer': 'adam',
  'learning_rate': 0.001,
  'optimizer_eps': 3.125e-4,
  'td_loss': 'squared',
  'replay_capacity': 50_000,
  'batch_size': 128,
  'min_replay': 500,
  'train_period': 4,
  'epsilon_start': 0.01,  # identity_epsilon of epsilon_train
  'epsilon_end': 0.01,
  'eval_epsilon': 0.001,
}
# kenjyoung/MinAtar, examples/dqn.py.
MINATAR = PLAIN | {
  'protocol': 'paper',
  'env_steps': 5_000_000,
  'padding': 'VALID',
  'hidden_units': 128,
  'initializer': 'torch_uniform',
  'optimizer': 'rmsprop_centered_torch',
  'learning_rate': 0.00025,
  'rmsprop_decay': 0.95,
  'optimizer_eps': 0.01,
  'td_loss': 'huber',  # smooth_l1_loss
  'error_bound': 1,
  'replay_capacity': 100_000,
  'batch_size': 32,
  'min_replay': 5_000,
  'train_period': 1,
  'epsilon_start': 1,
  'epsilon_end': 0.1,
  'epsilon_hold': 5_000,
  'epsilon_decay': 100_000,
}
# dopamine/labs/environments/minatar: dqn_breakout.gin, minatar_env.py;
# dqn_agent.py.
DOPAMINE_MINATAR = PLAIN | {
  'protocol': 'paper',
  'env_steps': 10 * 1_000_000,
  'padding': 'SAME',
  'hidden_units': 0,
  'initializer': 'xavier_uniform',
  'optimizer': 'adam',
  'learning_rate': 0.00025,
  'optimizer_eps': 3.125e-4,
  'td_loss': 'squared',
  'replay_capacity': 100_000,
  'batch_size': 32,
  'min_replay': 1_000,
  'train_period': 4,
  'epsilon_start': 1,
  'epsilon_end': 0.01,
  'epsilon_hold': 1_000,
  'epsilon_decay': 250_000,
}
# mohmdelsayed/streaming-drl: stream_q_minatar.py, optim.py, sparse_init.py.
STREAM_Q_MINATAR = PLAIN | {
  'env_steps': 5_000_000,
  'agent': 'stream_q',
  'trace_lambda': 0.8,
  'reward_scaling': 'std',
  'target_update': 'self',
  'replay': 'none',
  'train_period': 1,
  'train_steps': 1,
  'batch_size': 1,
  'min_replay': 0,
  'optimizer': 'obgd',
  'learning_rate': 1.0,
  'obgd_kappa': 2.0,
  'epsilon_start': 1,
  'epsilon_end': 0.01,
  'epsilon_hold': 0,
  'epsilon_decay': 5_000_000 // 5,
  'network': 'stream',
  'stream_units': 128,
  'hidden_units': 0,
  'initializer': 'sparse',
}

# esraaelelimy/gtd_algos: minatar_qrclambda.yaml, qrc.py, value_networks.py.
QRC_MINATAR = STREAM_Q_MINATAR | {
  'agent': 'qrc',
  'correction_rate': 0.1,
  'correction_decay': 1.0,
  'optimizer': 'sgd',
  'learning_rate': 1e-4,
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)  # parents are named from there


# Quan & Ostrovski (2020), dqn_zoo/rainbow/run_atari.py; its table of
# differences from C51.
DQN_ZOO_RAINBOW = DQN_ZOO_C51 | {
  'target_form': 'double',
  'head': 'dueling',
  'n_step': 3,
  'noisy_std': 0.1,
  'epsilon_start': 0,
  'epsilon_end': 0,
  'eval_epsilon': 0,
  'replay': 'prioritized',
  'priority': 'loss',
  'priority_exponent': 0.5,
  'importance_start': 0.4,
  'importance_end': 1,
  'min_replay': 20_000,  # 0.02 of the capacity
  'learning_rate': 0.00025 / 4,
  'optimizer_eps': 0.005 / 32,
}
# Castro et al. (2018), configs/rainbow.gin; priorities and weights are in
# rainbow_agent.py.
DOPAMINE_RAINBOW = DOPAMINE_C51 | {
  'n_step': 3,
  'replay': 'prioritized',
  'priority': 'loss',
  'priority_exponent': 0.5,
  'importance_start': 0.5,
  'importance_end': 0.5,
  'learning_rate': 0.0000625,
  'optimizer_eps': 0.00015,
}
DOPAMINE_QUANTILE = {
  name: value
  for name, value in DOPAMINE_RAINBOW.items()
  if name not in ('num_atoms', 'v_min', 'v_max')
} | {
  'agent': 'qrdqn',
  'quantiles': 200,
  'error_bound': 1,
  'importance_start': 0,
  'importance_end': 0,
  'learning_rate': 0.00005,
  'optimizer_eps': 0.0003125,
}
# labs/atari_100k/configs/DER.gin; the noise is in networks.py.
DER = DOPAMINE_RAINBOW | {
  'frames': 400_000,
  'iteration_frames': 400_000,
  'replay_capacity': 120_000,
  'min_replay': 1_600,
  'train_period': 1,
  'sticky_action_probability': 0,
  'life_loss_terminates': True,
  'target_form': 'double',
  'head': 'dueling',
  'noisy_std': 0.1,
  'initializer': 'torch_uniform',
  'epsilon_start': 0,
  'epsilon_end': 0,
  'n_step': 10,
  'learning_rate': 0.0001,
  'eval_episodes': 100,
}


def _read(name: str, *arguments: str) -> Any:
  return reading.from_arguments(
    COMPILED.get(name, AtariConfig),
    f'--flagfile={FOLDER / name}.flags',
    *arguments,
  )


def _lines(name: str) -> list[str]:
  text = (ROOT / FOLDER / f'{name}.flags').read_text()
  return [line for line in text.splitlines() if line and line[0] != '#']


@pytest.mark.parametrize(
  'name, published, period',
  [
    ('nature_dqn', NATURE, 2_500),  # 10,000 env steps
    ('dqn_zoo_dqn', DQN_ZOO_DQN, 2_500),  # 40,000 frames
    ('dqn_zoo_double_dqn', DQN_ZOO_DOUBLE_DQN, 7_500),  # 120,000 frames
    ('dqn_zoo_prioritized', DQN_ZOO_PRIORITIZED, 7_500),  # as Double DQN
    ('dqn_zoo_c51', DQN_ZOO_C51, 2_500),  # 40,000 frames
    ('dqn_zoo_qrdqn', DQN_ZOO_QRDQN, 2_500),  # 40,000 frames
    ('dqn_zoo_iqn', DQN_ZOO_IQN, 2_500),  # 40,000 frames
    ('dopamine_dqn', DOPAMINE, 2_000),  # 8,000 env steps
    ('dopamine_c51', DOPAMINE_C51, 2_000),  # 8,000 env steps
    ('dopamine_iqn', DOPAMINE_IQN, 2_000),  # 8,000 env steps
    ('dqn_zoo_rainbow', DQN_ZOO_RAINBOW, 2_000),  # 32,000 frames
    ('dopamine_rainbow', DOPAMINE_RAINBOW, 2_000),  # 8,000 env steps
    ('dopamine_quantile', DOPAMINE_QUANTILE, 2_000),  # 8,000 env steps
    ('der_atari_100k', DER, 2_000),
    ('cleanrl_dqn_atari', CLEANRL, 250),  # 1,000 env steps
    ('spr_atari_100k', SPR, 10_000),  # not heeded
  ],
)
def test_published_values(name, published, period):
  config = _read(name)
  found = {field: getattr(config, field) for field in published}
  assert found == published
  assert period == to_gradient_steps(
    config.target_period,
    config.target_period_unit,
    train_period=config.train_period,
    frames_per_env_step=config.frame_skip,
  )


@pytest.mark.parametrize(
  'name, published',
  [
    ('pqn_atari', PQN_ATARI),
    ('stream_q_minatar', STREAM_Q_MINATAR),
    ('qrc_minatar', QRC_MINATAR),
  ],
)
def test_published_values_without_a_replay(name, published):
  config = _read(name)
  found = {field: getattr(config, field) for field in published}
  assert found == published


@pytest.mark.parametrize(
  'name', ['cleanrl_pqn_cartpole', 'cleanrl_pqn_acrobot']
)
def test_published_values_of_cleanrl_pqn(name):
  config = _read(name)
  published = CLEANRL_PQN_CARTPOLE | {'environment': name.split('_')[-1]}
  assert {field: getattr(config, field) for field in published} == published


@pytest.mark.parametrize(
  'name, published', list(zip(GYM, (ZOO_DQN, ZOO_QRDQN), strict=True))
)
def test_published_values_of_gymnasium(name, published):
  config = reading.from_arguments(
    GymConfig, f'--flagfile={FOLDER / name}.flags'
  )
  assert {field: getattr(config, field) for field in published} == published
  check(config)


@pytest.mark.parametrize(
  'name, published, period',
  [
    ('cleanrl_dqn_cartpole', CLEANRL_CARTPOLE, 50),  # 500 env steps
    (
      'cleanrl_dqn_acrobot',
      CLEANRL_CARTPOLE | {'environment': 'acrobot'},
      50,
    ),
    ('cleanrl_c51_cartpole', CLEANRL_C51_CARTPOLE, 50),  # 500 env steps
    (
      'cleanrl_c51_acrobot',
      CLEANRL_C51_CARTPOLE | {'environment': 'acrobot'},
      50,
    ),
    ('dopamine_dqn_cartpole', DOPAMINE_CARTPOLE, 25),  # 100 agent steps
    (
      'dopamine_dqn_acrobot',
      DOPAMINE_CARTPOLE | {'environment': 'acrobot', 'env_steps': 500 * 1_000},
      25,
    ),
    ('minatar_dqn', MINATAR, 1_000),  # updates of the network
    ('dopamine_dqn_minatar', DOPAMINE_MINATAR, 250),  # 1,000 agent steps
  ],
)
def test_published_values_of_compiled_runs(name, published, period):
  config = _read(name)
  found = {field: getattr(config, field) for field in published}
  assert found == published
  assert collect_options.twin_spec(config).sync == period


@pytest.mark.parametrize(
  'name', ['cleanrl_dqn_cartpole', 'minatar_dqn', 'nature_dqn']
)
def test_nothing_is_stated_twice(name):
  stated = {line.split('=')[0] for line in _lines(name)}
  assert len(stated) == len(_lines(name))


def test_defaults_are_minatar_dqn():
  assert MinAtarConfig() == _read('minatar_dqn')


def test_defaults_are_nature_dqn():
  assert AtariConfig() == _read('nature_dqn')


# Fujimoto et al. (2018), table 3 and appendix C; sfujim/TD3 (34770cc); Haarnoja
# et al. (2018a, 2018b), tables 1; Lillicrap et al. (2016), section 7; CleanRL
# (fe8d8a0).
CONTROL: dict[str, dict[str, Any]] = {
  'td3': dict(batch_size=256, critic_learning_rate=3e-4, min_replay=25_000),
  'td3_paper': dict(
    batch_size=100,
    actor_sizes='400-300',
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    min_replay=10_000,
    random_env_steps=10_000,
  ),
  'sac': dict(
    batch_size=256,
    actor_learning_rate=3e-4,
    alpha=None,
    tau=0.005,
    initializer='xavier_uniform',
  ),
  'sac_hard': dict(alpha=1.0, reward_scale=5.0, train_steps=4),
  'ddpg': dict(
    batch_size=64,
    tau=0.001,
    actor_learning_rate=1e-4,
    critic_learning_rate=1e-3,
    critic_weight_decay=1e-2,
    action_layer=1,
    last_bound=3e-3,
    exploration_theta=0.15,
    exploration_std=0.2,
  ),
  'cleanrl_ddpg': dict(policy_delay=2, exploration='gaussian'),
  'cleanrl_td3': dict(policy_delay=2, smoothing_std=0.2, smoothing_clip=0.5),
  'cleanrl_sac': dict(
    critic_learning_rate=1e-3,
    alpha_learning_rate=1e-3,
    td_loss='squared',
    log_std_low=-5.0,
    log_std_high=2.0,
    log_std_squash='tanh',
    min_replay=5_000,
    random_env_steps=5_000,
    initializer='torch_uniform',
  ),
  'td3_pendulum': dict(env_steps=20_000),
  'sac_pendulum': dict(env_steps=20_000),
  # adityab/CrossQ (train.py; sbx/sac/policies.py), with Flax's initializer.
  'crossq': dict(
    target_update='self',
    batch_size=256,
    discount=0.99,
    min_replay=5_000,
    random_env_steps=5_000,
    policy_delay=3,
    critic_sizes='2048-2048',
    actor_sizes='256-256',
    initializer='lecun_normal',
    norm_momentum=0.99,
    renorm_warmup=100_000,
    adam_b1=0.5,
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    alpha_learning_rate=1e-3,
    alpha=None,
    td_loss=None,
  ),
  'crossq_pendulum': dict(
    env_steps=10_000, critic_sizes='256-256', policy_delay=3, adam_b1=0.5
  ),
}
# Gradient steps from one target update to the next.
CONTROL_SYNC = {
  'td3': 2,
  'td3_paper': 2,
  'sac': 1,
  'sac_hard': 4_000,
  'ddpg': 1,
  'cleanrl_ddpg': 2,
}


@pytest.mark.parametrize('name', CONTROL)
def test_presets_of_control(name):
  text = (ROOT / FOLDER / f'{name}.flags').read_text()
  assert text.startswith('# ')
  (config,) = reading.sweep_from_arguments(
    actor_critic.ControlConfig,
    f'--flagfile={FOLDER}/{name}.flags',
  ).configs
  actor_critic.check(config)
  for option, value in CONTROL[name].items():
    assert getattr(config, option) == value, option
  if name in CONTROL_SYNC:
    assert collect_options.twin_spec(config).sync == CONTROL_SYNC[name]


@pytest.mark.parametrize('name', resolved.LAUNCHERS)
def test_what_a_preset_comes_to(name):
  """Nothing changes unseen with a parent or with a launcher's defaults."""
  stated = json.loads((resolved.FOLDER / f'{name}.json').read_text())
  assert json.loads(resolved.text(name)) == stated, (
    'if this is meant: python -m tests.experiments.resolved'
  )


def test_what_every_preset_comes_to_is_stated():
  stated = {path.stem for path in resolved.FOLDER.glob('*.json')}
  presets = {path.stem for path in resolved.FLAG_FILES.glob('*.flags')}
  assert stated == presets == set(resolved.LAUNCHERS)


def test_every_preset_is_known_here():
  known = {'nature_dqn', 'pqn_atari', *PARENTS, *COMPILED}
  on_disk = (ROOT / FOLDER).glob('*.flags')
  found = {path.stem for path in on_disk} - set(GRIDS)
  found = {n for n in found if not n.startswith(('lab_', 'fqi_'))}
  assert found == known | set(CONTROL) | set(GYM)


@pytest.mark.parametrize('name', PARENTS)
def test_a_preset_states_its_differences_only(name):
  first, *rest = _lines(name)
  assert first == f'--flagfile={FOLDER / PARENTS[name]}.flags'
  parent = _read(PARENTS[name])
  for line in rest:
    assert _read(PARENTS[name], line) != parent, line


@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_cites_its_source_and_can_be_run(name):
  text = (ROOT / FOLDER / f'{name}.flags').read_text()
  assert text.startswith('# ')
  config = _read(name)
  meaning.check_meant([config])
  if name in COMPILED:
    q.check(config)
    return
  round_frames = config.frame_skip * config.train_period
  assert config.frames % config.iteration_frames == 0
  assert config.iteration_frames % round_frames == 0
  assert config.replay_capacity >= config.min_replay


def test_the_sweep_of_the_quickstart():
  sweep = reading.sweep_from_arguments(
    ClassicConfig,
    f'--flagfile={FOLDER}/quickstart_sweep.flags',
  )
  for config in sweep.configs:
    q.check(config)
  assert sweep.axes == {'target_period': (10, 1_000, 10_000)}
  assert sweep.configs[0].seeds == 5


def test_the_grid_of_the_twin():
  sweep = reading.sweep_from_arguments(
    ClassicConfig,
    f'--flagfile={FOLDER}/twin_grid_cartpole.flags',
  )
  for config in sweep.configs:
    q.check(config)
  hard = [c.target_period for c in sweep.configs if c.target_update == 'hard']
  soft = [c.tau for c in sweep.configs if c.target_update == 'soft']
  assert len(sweep.configs) == len(hard) + len(soft) == 14
  # Averages as old on average as copies every C gradient steps.
  assert soft == pytest.approx([2 / (period + 1) for period in hard])
  preset = _read('cleanrl_dqn_cartpole', '--num_envs=10', '--seeds=10')
  same = {'target_period': 1, 'target_period_unit': 'gradient_steps'}
  assert sweep.configs[0] == dataclasses.replace(preset, **same)
