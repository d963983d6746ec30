"""Errors of all runners."""


class NonFiniteError(RuntimeError):
  """A loss or a parameter is infinite or not a number."""
