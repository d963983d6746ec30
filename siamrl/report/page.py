"""A page about runs: one HTML file that needs no network.

Its curves are drawn in the browser by Vega-Lite, which the file holds.
"""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from siamrl.optional import import_optional
from siamrl.report.arrangement import COLORS
from siamrl.report.run_folder import write_atomically

_TEMPLATE = 'page.html'
_NEEDS = 'reports need {}'


def write_page(path: str | os.PathLike[str], content: Mapping[str, Any]) -> int:
  """Writes the page, replacing the file atomically.

  All texts are escaped, so that they show as they are.

  Args:
    path: the file; its directory exists.
    content: what `page.html` shows. `data`, as of `lines.make_lines`, is None
      if there are no rows.

  Returns:
    The size in bytes.

  Raises:
    ImportError: if Jinja or vl-convert is not installed.
    OSError: if the file cannot be written.
  """
  jinja2 = import_optional('jinja2', _NEEDS.format('Jinja'), 'report')
  vl_convert = import_optional(
    'vl_convert', _NEEDS.format('vl-convert'), 'report'
  )
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  safe = import_optional(
    'markupsafe', _NEEDS.format('MarkupSafe'), 'report'
  ).Markup
  library = ''
  if content['data'] is not None:
    # Vega itself is not to be had from the bundle, only what embeds it.
    library = vl_convert.javascript_bundle('window.siamrlEmbed = vegaEmbed;')
  text = environment.get_template(_TEMPLATE).render(
    content,
    json=safe(as_json(content['data'])),
    library=safe(library.replace('</script', r'<\/script')),
    colors=safe(as_json(COLORS)),
  )
  encoded = text.encode(errors='backslashreplace')
  write_atomically(pathlib.Path(path), encoded)
  return len(encoded)


def as_json(value: Any) -> str:
  """Returns JSON that cannot end the script element that holds it."""
  text = json.dumps(value, separators=(',', ':'), allow_nan=False)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text
