"""The answers to --help and --helpfull."""

import dataclasses
import textwrap

from experiments.config.declaring import INT32


def help_text(
  cls: type, intro: str, *, lists: bool = False, full: bool = True
) -> str:
  """The answer to --help or --helpfull.

  Args:
    cls: a frozen dataclass of options.
    intro: the first paragraphs.
    lists: whether options that are not single take lists.
    full: whether all options are shown, under their headings and in written
      order; else the common ones, where there are any.
  """
  options = [f for f in dataclasses.fields(cls) if 'help' in f.metadata]
  common = [f for f in options if f.metadata['common']]
  short = bool(common) and not full
  lines = [intro.strip(), '']
  if short:
    lines += ['', 'The options that most runs change:']
  for field in common if short else dataclasses.fields(cls):
    if 'group' in field.metadata:
      lines += ['', f'{field.metadata["group"]}:']
    elif 'help' in field.metadata:
      single = lists and field.metadata['single']
      lines.append(_help_head(field, ['one value'] if single else []))
      lines += _help_body(field)
  if short:
    lines += ['', f'--helpfull explains all {len(options)} options.']
  lines += [
    '',
    '--flagfile=FILE reads flags from a file, one a line. Of a flag given '
    'twice the',
    'later one counts, so flags after --flagfile change what the file says.',
    'Presets are found by their name from any folder: --flagfile=nature_dqn.',
  ]
  if lists:
    lines += [
      '',
      'A flag that is not marked (one value) takes several, separated by '
      'commas;',
      'every combination of the values is run.',
    ]
  return '\n'.join(lines)


def _help_body(field: dataclasses.Field) -> list[str]:
  """The lines below the first one."""
  text = field.metadata['help']
  bound, most = field.metadata['bound'].text, field.metadata['most']
  if most < INT32:
    bound += f', at most {most}'
  summaries = field.metadata.get('summaries', {})
  if bound and not summaries:
    text = f'{text.rstrip(".")}; {bound}.'
  when = field.metadata['when']
  if when is not None and not summaries:
    text = f'{text.rstrip(".")}. Read only {when.words}.'
  indent = ' ' * 6
  lines = textwrap.wrap(
    text,
    76,
    initial_indent=indent,
    subsequent_indent=indent,
    break_on_hyphens=False,  # --tau is a word
  )
  for name, summary in summaries.items():
    lines += textwrap.wrap(
      f'{name}: {summary}',
      76,
      initial_indent=indent + '  ',
      subsequent_indent=indent + '    ',
      break_on_hyphens=False,
    )
  return lines


def _help_head(field: dataclasses.Field, marks: list[str]) -> str:
  """The first line of a flag in the help text."""
  default, name = field.default, field.name
  if isinstance(default, bool):
    name, text = f'[no]{name}', str(default).lower()
  else:
    # Underscores group digits, and are understood on the command line too.
    text = f'{default:_}' if isinstance(default, int) else str(default)
  if default is not None:
    marks = [f'default: {text}', *marks]
  return f'  --{name}' + (f'  ({"; ".join(marks)})' if marks else '')
