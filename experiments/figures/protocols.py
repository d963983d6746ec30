"""Differences in protocol, which make returns mean different things."""

from collections.abc import Sequence

from experiments.figures.sources import Source

# Flags that change what a return is, or how an episode is played.
_OF_RETURNS = (
  'frame_skip',
  'sticky_action_probability',
  'frame_cap',
  'full_action_set',
  'noop_max',
  'protocol',
)
_OF_COLUMN = {
  'train_return': ('epsilon_end',),
  'eval_return': ('eval_epsilon', 'eval_episode_env_steps'),
}


def differences(found: Sequence[Source], column: str) -> list[str]:
  """Returns a note for each part of the protocol in which runs differ.

  Args:
    found: folders and files. A flag that one of them does not have is unknown
      there, and a flag that a sweep varies is its question.
    column: the column that is drawn.
  """
  notes = []
  for name in (*_OF_RETURNS, *_OF_COLUMN.get(column, ())):
    values = [
      source.flags[name]
      for source in found
      if name in source.flags and name not in source.table
    ]
    if len(set(values)) > 1:
      shown = ', '.join(dict.fromkeys(values))
      notes.append(f'unlike protocols: --{name} is {shown}')
  return notes
