"""The fixture that siamrl brings to pytest; imports nothing until it is used.

A library tests its own target network in three lines:

  def test_target(check_twin):
    params = {'weight': np.zeros((2, 3)), 'bias': np.zeros(3)}
    check_twin(my_library.update, params, rule='soft', tau=0.005)
"""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def check_twin() -> Callable[..., Any]:
  """`siamrl.conformance.check`, whose errors say which law a twin breaks."""
  from siamrl.conformance import check

  return check
