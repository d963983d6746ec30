"""Imports of optional packages, with errors that say what is wrong."""

import importlib
from typing import Any


class OptionalImportError(ImportError):
  """An optional package cannot be used; the message says why."""


class NotInstalledError(OptionalImportError):
  """An optional package is not installed; the message says how to get it."""


def import_optional(module: str, needs: str, extra: str) -> Any:
  """Imports a module of an optional package.

  Only the absence of the package itself leads to the advice to install the
  extra. A package that is there but fails to import, for want of a package of
  its own or of a shared library, is not mended by that advice, so its own
  message is shown.

  Args:
    module: such as 'PIL.Image'.
    needs: how the error begins, such as 'videos need Pillow'.
    extra: of siamrl, which brings the package.

  Returns:
    The module itself, also where its name has dots.

  Raises:
    NotInstalledError: the package is not installed.
    OptionalImportError: the package is installed, but cannot be imported.
  """
  package = module.partition('.')[0]
  try:
    importlib.import_module(package)
    return importlib.import_module(module)
  # Packages that do not fit together fail with any kind of error, such as a
  # ValueError of NumPy's or a TypeError of Protobuf's.
  except Exception as error:
    # The name is that of the module that was not found, so that it tells a
    # package that is missing from one that misses something.
    if isinstance(error, ModuleNotFoundError) and error.name == package:
      raise not_installed(needs, extra) from error
    reason = ' '.join(str(error).split())
    if not isinstance(error, ImportError):
      reason = f'{type(error).__name__}: {reason}'
    raise OptionalImportError(
      f'{needs}, which is installed but cannot be imported: {reason}'
    ) from error


def not_installed(needs: str, extra: str) -> NotInstalledError:
  """The error of a package that is not installed; see `import_optional`."""
  return NotInstalledError(f'{needs}: pip install siamrl[{extra}]')
