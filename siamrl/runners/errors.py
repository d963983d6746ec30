"""What can go wrong in any runner."""


class NonFiniteError(RuntimeError):
  """A loss or a parameter is infinite or not a number."""
