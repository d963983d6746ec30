"""The answers to --help and --helpfull."""

import dataclasses
import textwrap

from experiments.config.declaring import INT32, When, complete

_WIDTH = 76
_FLAG_FILES = """
--flagfile=FILE reads flags from a file, one per line. If a flag is given twice,
the last one counts, so flags after --flagfile override those of the file.
Presets are found by name from any folder: --flagfile=nature_dqn."""
_LISTS = """
A flag not marked (one value) takes several values, separated by commas; every
combination of them is run."""
_SHORT = """
Most runs change only these. --helpfull explains all {number} options."""


def help_text(
  cls: type, intro: str, *, lists: bool = False, full: bool = True
) -> str:
  """The answer to --help or --helpfull, options under their headings.

  Args:
    cls: a frozen dataclass of options.
    intro: the first paragraphs.
    lists: whether options that are not single take lists.
    full: whether to show all options rather than the common ones, if any.
  """
  fields = dataclasses.fields(complete(cls))
  options = [
    field
    for field in fields
    if 'help' in field.metadata and not field.metadata['never']
  ]
  shown = [field for field in options if field.metadata['common']]
  if full or not shown:
    shown = options
  lines = [intro.strip(), '']
  heading = ''
  under: dict[str, list[dataclasses.Field]] = {'': []}
  titles = {'': ''}
  for field in fields:
    if 'group' in field.metadata:
      heading = field.name
      under[heading], titles[heading] = [], f'{field.metadata["group"]}:'
    elif field in shown:
      under[field.metadata.get('under', heading)].append(field)
  for heading, members in under.items():
    if members:
      lines += ['', titles[heading]]
      for field in members:
        single = lists and field.metadata['single']
        lines.append(_head(field, ['one value'] if single else []))
        lines += _body(field)
  if shown is not options:
    lines.append(_SHORT.format(number=len(options)))
  return '\n'.join([*lines, _FLAG_FILES, *([_LISTS] if lists else [])])


def _body(field: dataclasses.Field) -> list[str]:
  """The lines below the first one."""
  about = field.metadata
  text, bound = about['help'].rstrip('.'), about['bound'].text
  if about['most'] < INT32:
    bound += f', at most {about["most"]}'
  if bound and not {'summaries', 'path'} & about.keys():
    text += f'; {bound}'
  text += '.'
  conditions = dict.fromkeys(
    each.words
    for each in (about['refused'], about['when'])
    if isinstance(each, When)
  )
  if conditions:
    condition = f'Only {" and ".join(conditions)}.'
    if condition.startswith('Only without ') and ' and ' not in condition:
      condition = condition.replace('Only without', 'Not with', 1)
    text += f' {condition}'
  lines = _wrapped(text, 6, 6)
  for name, summary in about.get('summaries', dict)().items():
    lines += _wrapped(f'{name}: {summary}', 8, 10)
  return lines


def _wrapped(text: str, first: int, rest: int) -> list[str]:
  """The lines of a paragraph, indented."""
  return textwrap.wrap(
    text,
    _WIDTH,
    initial_indent=' ' * first,
    subsequent_indent=' ' * rest,
    break_on_hyphens=False,  # --tau is a word
  )


def _head(field: dataclasses.Field, marks: list[str]) -> str:
  """The first line of a flag in the help text."""
  default, name = field.default, field.name
  if default is None:
    default = field.metadata['taken']
  if isinstance(default, bool):
    name, text = f'[no]{name}', str(default).lower()
  else:
    # Underscores group digits, and are understood on the command line too.
    text = f'{default:_}' if isinstance(default, int) else str(default)
  if default is not None:
    marks = [f'default: {text}', *marks]
  return f'  --{name}' + (f'  ({"; ".join(marks)})' if marks else '')
