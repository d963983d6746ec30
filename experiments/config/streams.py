"""Checks of agents that learn from each transition once, in order."""

from typing import Any

from experiments.config.declaring import UsageError, When, either, refuse
from siamrl.agents import registry

# The only values of other options.
_ONLY = {
  'replay': 'none',
  'target_update': 'self',
  'num_envs': 1,
  'train_period': 1,
  'train_steps': 1,
  'batch_size': 1,
  'augmentation': 'none',
  'noisy_std': 0,
  'reset_period': 0,
}


def _streams(name: str) -> tuple[str, ...]:
  kind = registry.AGENTS.get(name)
  return () if kind is None else kind.streams


def _streaming() -> list[str]:
  return [name for name in registry.AGENTS if _streams(name)]


# The condition that the agent's targets are made for whole rounds.
LEARNS_ROUNDS = When(
  lambda config: not _streams(config.agent),
  lambda: f'without --agent={either(_streaming())}',
)


def check(config: Any, *, acts: bool = True) -> None:
  """Raises UsageError for options that do not go with learning in order.

  Args:
    config: the options.
    acts: whether runs take env steps while they learn.
  """
  allowed = _streams(config.agent)
  if not allowed:
    if config.optimizer == 'obgd':
      refuse(
        config,
        'optimizer',
        f'go with --agent={either(_streaming())}, not {config.agent}',
      )
    return
  if not acts:
    raise UsageError(
      f'--agent={config.agent} must learn from env steps as it takes them, not '
      'from a data set'
    )
  for name, value in _ONLY.items():
    if getattr(config, name, value) != value:
      refuse(
        config,
        name,
        f'be {value} for --agent={config.agent}, which learns from each env '
        'step once, in order',
      )
  if config.optimizer not in allowed:
    refuse(
      config, 'optimizer', f'be {either(allowed)} for --agent={config.agent}'
    )
