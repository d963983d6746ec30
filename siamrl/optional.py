"""Imports of optional packages, with errors that say what is wrong."""

import importlib
from typing import Any


class OptionalImportError(ImportError):
  """An optional package cannot be used; the message says why."""


class NotInstalledError(OptionalImportError):
  """An optional package is not installed; the message says how to get it."""


def import_optional(module: str, needs: str, extra: str) -> Any:
  """Imports a module of an optional package.

  The error advises to install the extra only if the package itself is missing.
  If the package is there but lacks another package or a shared library, that
  would not help, so its own message is shown.

  Args:
    module: name of the module, such as 'PIL.Image'.
    needs: beginning of the error, such as 'videos need Pillow'.
    extra: the extra of siamrl that installs the package.

  Returns:
    The module itself, even if its name has dots.

  Raises:
    NotInstalledError: the package is not installed.
    OptionalImportError: the package is installed, but cannot be imported.
  """
  package = module.partition('.')[0]
  try:
    importlib.import_module(package)
    return importlib.import_module(module)
  # Incompatible packages raise all kinds of errors, such as NumPy's ValueError
  # or Protobuf's TypeError.
  except Exception as error:
    # The name is that of the module that was not found, which may be another
    # package that this one needs.
    if isinstance(error, ModuleNotFoundError) and error.name == package:
      raise not_installed(needs, extra) from error
    reason = ' '.join(str(error).split())
    if not isinstance(error, ImportError):
      reason = f'{type(error).__name__}: {reason}'
    raise OptionalImportError(
      f'{needs}, which is installed but cannot be imported: {reason}'
    ) from error


def not_installed(needs: str, extra: str) -> NotInstalledError:
  """Makes the error for a missing package; see `import_optional`."""
  return NotInstalledError(f'{needs}: pip install siamrl[{extra}]')
