"""Tests of target networks of any library, with NumPy alone.

The question is whether a target network moves when it should, as far as it
should, and as a whole. `identify` says which rule an update is:

  >>> import numpy as np
  >>> from siamrl.conformance import check, identify
  >>> params = {'weight': np.zeros((2, 3)), 'bias': np.zeros(3)}
  >>> def update(online, target, gradient_steps):
  ...   if gradient_steps % 10_000:
  ...     return target
  ...   return {name: leaf.copy() for name, leaf in online.items()}
  >>> print(identify(update, params))
  hard, period = 10000
  looked at each of gradient steps 1 to 19,660, and at 24 others up to ...

What an update does at other gradient steps is not known. `check` raises a
`ConformanceError` that names the broken laws, the numbers that were seen, and
the defect of the museum, `DEFECTS`, that looks like it, if one does:

  >>> check(update, params, rule='hard', period=1_000)
  Traceback (most recent call last):
  siamrl.conformance.probing.ConformanceError: clock: ...

Where siamrl is installed, pytest has it as a fixture:

  def test_my_twin(check_twin):
    check_twin(update, params, rule='hard', period=10_000)

Updates that write their target in place, as is usual in PyTorch, are wrapped in
`in_place`; parameters may be networks of PyTorch:

  network = torch.nn.Linear(3, 2)
  soft = in_place(lambda online, target, gradient_steps: polyak_update(
    online.parameters(), target.parameters(), 0.005))
  check(soft, network, rule='soft', tau=0.005)

`check_trace`, or `python -m siamrl.conformance TRACE`, judges a file that any
training loop can write; see `siamrl.conformance.traces`.
"""

from siamrl.conformance.defects import DEFECTS
from siamrl.conformance.identifying import Identity, identify
from siamrl.conformance.judging import check_trace
from siamrl.conformance.laws import LAWS, check
from siamrl.conformance.probing import ConformanceError, in_place

__all__ = [
  'DEFECTS',
  'LAWS',
  'ConformanceError',
  'Identity',
  'check',
  'check_trace',
  'identify',
  'in_place',
]
