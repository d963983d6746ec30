"""What each preset comes to: every option, with the value that it has.

A preset states only what differs from its parent and from the defaults of its
launcher, so a change of either changes presets that nobody looked at. The files
of `presets/` state all of it, and a test compares. After an intended change,

  python -m tests.experiments.resolved

writes them anew; their diff shows what became of each preset.
"""

import json
import pathlib
from typing import Any

from experiments import (
  atari,
  classic,
  control,
  gym,
  lab,
  minatar,
  offline,
  siamese,
)
from experiments.config import reading
from experiments.config.meaning import dropped
from experiments.engines import sweeps
from experiments.families import actor_critic

ROOT = pathlib.Path(__file__).parents[2]
FLAG_FILES = ROOT / 'experiments' / 'flagfiles'
FOLDER = pathlib.Path(__file__).parent / 'presets'

# The presets of each launcher.
PRESETS = {
  atari: (
    *('nature_dqn', 'dqn_zoo_dqn', 'dqn_zoo_double_dqn', 'dopamine_dqn'),
    *('cleanrl_dqn_atari', 'spr_atari_100k', 'quickstart'),
    *('dqn_zoo_c51', 'dqn_zoo_qrdqn', 'dqn_zoo_iqn', 'dopamine_c51'),
    *('dopamine_iqn', 'dqn_zoo_prioritized', 'pqn_atari'),
    *('dqn_zoo_rainbow', 'dopamine_rainbow', 'dopamine_quantile'),
    'der_atari_100k',
  ),
  classic: (
    *('cleanrl_dqn_cartpole', 'cleanrl_dqn_acrobot', 'dopamine_dqn_cartpole'),
    *('dopamine_dqn_acrobot', 'pqn_cartpole', 'quickstart_sweep'),
    *(
      'soft_divergence',
      'twin_age_cartpole',
      'twin_age_catch',
      'twin_agreement',
    ),
    *('twin_grid_cartpole', 'cleanrl_c51_cartpole', 'cleanrl_c51_acrobot'),
    *('cleanrl_pqn_cartpole', 'cleanrl_pqn_acrobot', 'twin_defects_cartpole'),
    *('atlas_discrete_rules', 'atlas_catch', 'atlas_cartpole', 'atlas_minto'),
  ),
  minatar: (
    *('minatar_dqn', 'dopamine_dqn_minatar', 'pqn_minatar', 'spr_minatar'),
    *('target_free_gap', 'twin_minatar', 'minatar_table_dqn'),
    *('minatar_table_double', 'minatar_table_prioritized'),
    *('minatar_table_n_step', 'minatar_table_c51', 'minatar_table_qrdqn'),
    *('minatar_table_iqn', 'minatar_table_rainbow', 'minatar_table_m_iqn'),
    *('minatar_table_pqn', 'minatar_table_stream_q', 'twin_distributions_dqn'),
    *('twin_distributions_c51', 'twin_distributions_qrdqn'),
    *('stream_q_minatar', 'qrc_minatar', 'twin_defects_breakout'),
    *('replay_and_twin', 'atlas_breakout', 'atlas_asterix'),
  ),
  gym: ('zoo_dqn_lunar_lander', 'zoo_qrdqn_lunar_lander'),
  control: (
    *('atlas_rules', 'atlas_pendulum'),
    *('td3', 'td3_paper', 'sac', 'sac_hard', 'ddpg', 'cleanrl_ddpg'),
    *('cleanrl_td3', 'cleanrl_sac', 'td3_pendulum', 'sac_pendulum'),
    *('twin_rate', 'crossq', 'crossq_pendulum', 'twin_defects_pendulum'),
    'twin_defects_normalized',
  ),
  offline: (
    *('fqi_car_on_hill', 'fqi_chain', 'fqi_three_schedules'),
    'fqi_rank_and_dormancy',
  ),
  lab: (
    *('lab_baird_functional', 'lab_baird_hard', 'lab_baird_soft'),
    *('lab_random', 'lab_self_prediction', 'lab_tsitsiklis', 'lab_fits'),
    *('lab_control_hard', 'lab_control_soft', 'lab_control_lambda'),
    *('lab_control_star', 'lab_growing_periods'),
    'lab_overparameterized',
  ),
  siamese: ('siamese_accuracy', 'siamese_collapse', 'siamese_frames'),
}
LAUNCHERS = {name: of for of, names in PRESETS.items() for name in names}

_OPTIONS = {
  atari: atari.AtariConfig,
  classic: classic.ClassicConfig,
  minatar: minatar.MinAtarConfig,
  gym: gym.GymConfig,
  control: actor_critic.ControlConfig,
  offline: offline.OfflineConfig,
  lab: lab.LabConfig,
  siamese: siamese.SiameseConfig,
}
# Options that say where and how runs are computed, and not what they are.
_ELSEWHERE = (*sweeps.WHERE, 'share', 'vectorized', 'num_processes')


def resolved(name: str) -> dict[str, Any]:
  """The options of a preset that mean something to its runs.

  Returns:
    option -> value, or a list of the values that are swept; where a default
    depends on the agent, the agent's.
  """
  cls = _OPTIONS[LAUNCHERS[name]]
  sweep = reading.sweep_from_arguments(
    cls, f'--flagfile={FLAG_FILES / name}.flags'
  )
  values = reading.as_json(sweep)
  if cls is actor_critic.ControlConfig:
    values |= actor_critic.agent_options(sweep.configs[0])
  nowhere = set.intersection(
    *(set(dropped(config)) for config in sweep.configs)
  )
  return {
    option: value
    for option, value in sorted(values.items())
    if option not in nowhere and option not in _ELSEWHERE
  }


def text(name: str) -> str:
  """The file of a preset."""
  return json.dumps(resolved(name), indent=1) + '\n'


def main() -> None:
  """Writes the files of all presets, and removes those of no preset."""
  FOLDER.mkdir(exist_ok=True)
  for path in FOLDER.glob('*.json'):
    path.unlink()
  for name in LAUNCHERS:
    (FOLDER / f'{name}.json').write_text(text(name))


if __name__ == '__main__':
  main()
