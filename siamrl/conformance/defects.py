"""The museum: ten kinds of defects of target networks, seen in public code.

Each is a `Defect`: what happens, the law of `siamrl.conformance.check` that
catches it, where it was seen, and a reference in NumPy for tests. References
take `tau` and `period`, what the user asked for, and do something else:

  rule = DEFECTS['period_multiplied'].reference(period=100, factor=10)
  target = rule.init(online, fresh)
  online, target = rule.update(online, target, gradient_steps)

Gradient steps are counted after the optimizer's step, from 1 on, so that the
right rule moves the twin after those that are multiples of `period`.
"""

from collections.abc import Callable
import re
from typing import Any, NamedTuple

import numpy as np

from siamrl.conformance import trees

# Paths of what batch normalization measures, in Flax, Haiku and PyTorch.
STATISTICS = re.compile(
  r'batch_stats|batch_norm.*(mean|var)|running_(mean|var)|num_batches_tracked'
  r'|moving_(mean|variance)|/(mean|var)_ema/|BatchNorm.*/(mean|var)$'
)


class Rule(NamedTuple):
  """A twin that need not be right.

  Attributes:
    init: (online, fresh) -> target, where `fresh` are the parameters that the
      target network was initialized with.
    update: (online, target, gradient_steps) -> (online, target).
  """

  init: Callable[[Any, Any], Any]
  update: Callable[[Any, Any, int], tuple[Any, Any]]


class Sighting(NamedTuple):
  """A place where a defect was seen.

  Attributes:
    repository: owner and name on GitHub.
    issue: numbers of the issue or pull request, and of the repair if known.
    year: year of the report.
    what: the facts.
  """

  repository: str
  issue: str
  year: int
  what: str

  def __str__(self) -> str:
    return f'{self.repository} {self.issue} ({self.year}): {self.what}'


class Defect(NamedTuple):
  """A kind of defect.

  Attributes:
    name: key of `DEFECTS`.
    happens: sentence that says what the twin does.
    law: key of `siamrl.conformance.LAWS`, the law that it breaks.
    traced: whether a trace of norms can tell it from others.
    reference: makes the rule, from `tau`, `period` and its own parameters.
    seen: where it was seen.
  """

  name: str
  happens: str
  law: str
  traced: bool
  reference: Callable[..., Rule]
  seen: tuple[Sighting, ...]


def moved(online: Any, target: Any, tau: float) -> Any:
  """The target, moved the fraction `tau` of the way; a copy for 1."""
  sources = dict(trees.leaves(online))

  def move(path: str, leaf: Any) -> np.ndarray:
    source = np.asarray(sources[path])
    if tau == 1 or source.dtype.kind not in 'fc':
      return source.copy()
    return (tau * source + (1 - tau) * np.asarray(leaf)).astype(source.dtype)

  return trees.rebuild(target, move)


def right(tau: float = 1.0, period: int = 1) -> Rule:
  """The rule without a defect: born equal, moved every `period`."""

  def update(online: Any, target: Any, steps: int) -> tuple[Any, Any]:
    due = steps % period == 0
    return online, moved(online, target, tau) if due else target

  return Rule(lambda online, fresh: moved(online, online, 1), update)


def alias(tau: float = 1.0, period: int = 1) -> Rule:
  """From the first update on, the target is the online network itself."""

  def update(online: Any, target: Any, steps: int) -> tuple[Any, Any]:
    return online, online if steps >= period else target

  return right()._replace(update=update)


def lost_update(tau: float = 1.0, period: int = 1) -> Rule:
  """The target stays as it was born."""
  return right()._replace(update=lambda online, target, steps: (online, target))


def period_multiplied(
  tau: float = 1.0, period: int = 1, factor: int = 10
) -> Rule:
  """The target moves every `factor * period`."""
  return right(tau, factor * period)


def unit_confusion(
  tau: float = 1.0, period: int = 1, steps_per_gradient_step: int = 4
) -> Rule:
  """The period is counted in another unit, such as env steps or frames.

  The target moves after each gradient step during which the other clock has
  passed a multiple of `period`.

  Args:
    tau: as asked for.
    period: as asked for, in gradient steps.
    steps_per_gradient_step: steps of the other clock for each gradient step.
  """

  def update(online: Any, target: Any, steps: int) -> tuple[Any, Any]:
    now = steps * steps_per_gradient_step // period
    before = (steps - 1) * steps_per_gradient_step // period
    return online, moved(online, target, tau) if now > before else target

  return right()._replace(update=update)


def double_rule(tau: float = 0.005, period: int = 100) -> Rule:
  """The target is soft at every gradient step and is copied every `period`."""

  def update(online: Any, target: Any, steps: int) -> tuple[Any, Any]:
    due = steps % period == 0
    return online, moved(online, target, 1 if due else tau)

  return right()._replace(update=update)


def statistics_left_behind(
  tau: float = 1.0,
  period: int = 1,
  statistics: str | re.Pattern[str] = STATISTICS,
) -> Rule:
  """The target's statistics of batch normalization do not move.

  Args:
    tau: as asked for.
    period: as asked for.
    statistics: regular expression that is found in their paths.
  """

  def update(online: Any, target: Any, steps: int) -> tuple[Any, Any]:
    _, after = right(tau, period).update(online, target, steps)
    behind = dict(trees.leaves(target))
    return online, trees.rebuild(
      after,
      lambda path, leaf: behind[path] if re.search(statistics, path) else leaf,
    )

  return right()._replace(update=update)


def soft_birth(tau: float = 0.005, period: int = 1) -> Rule:
  """The target is born by a soft update of fresh parameters, not as a copy."""
  return right(tau, period)._replace(
    init=lambda online, fresh: moved(online, fresh, tau)
  )


def tau_ignored(
  tau: float = 0.005, period: int = 1, default: float = 1.0
) -> Rule:
  """The target moves by a default, whatever tau was given."""
  return right(default, period)


def once_per_block(tau: float = 0.005, period: int = 1, block: int = 8) -> Rule:
  """The target moves at most once in a block of gradient steps, at its end.

  Args:
    tau: as asked for.
    period: as asked for, in gradient steps.
    block: gradient steps between two looks at the clock.
  """

  def update(online: Any, target: Any, steps: int) -> tuple[Any, Any]:
    due = steps // period > (steps - block) // period
    looks = steps % block == 0
    return online, moved(online, target, tau) if looks and due else target

  return right()._replace(update=update)


def wrong_direction(tau: float = 0.005, period: int = 1) -> Rule:
  """The online network moves toward the target, which stays."""

  def update(online: Any, target: Any, steps: int) -> tuple[Any, Any]:
    due = steps % period == 0
    return moved(target, online, tau) if due else online, target

  return right()._replace(update=update)


_ALL = (
  Defect(
    'alias',
    'The target is the online network under another name, so it moves with '
    'each gradient step.',
    'own_memory',
    True,
    alias,
    (
      Sighting(
        'andri27-ts/Reinforcement-Learning',
        '#14',
        2021,
        'the target becomes a reference to the online network',
      ),
      Sighting(
        'higgsfield/RL-Adventure',
        '#32',
        2021,
        'targets come from the online network, with the same effect',
      ),
    ),
  ),
  Defect(
    'lost_update',
    'The target never moves after its birth.',
    'moves',
    True,
    lost_update,
    (
      Sighting(
        'higgsfield-ai/higgsfield',
        '#14',
        2019,
        'the target of HER is copied once before training and never after',
      ),
      Sighting(
        'thesouther/MARL',
        '#8',
        2022,
        'the target loads its own state',
      ),
      Sighting(
        'AgileRL/AgileRL',
        '#464',
        2026,
        'soft updates do not reach the target of DQN, since parameters are '
        'shared through a TensorDict',
      ),
    ),
  ),
  Defect(
    'period_multiplied',
    'The period is a multiple or a fraction of the one that was asked for.',
    'clock',
    True,
    period_multiplied,
    (
      Sighting(
        'vwxyzjn/cleanrl',
        '#322, repaired by #323',
        2022,
        '501 steps were asked for and 5010 realized, because the copy sat in '
        'a branch with a period of its own',
      ),
      Sighting(
        'DLR-RM/stable-baselines3',
        '#1373',
        2023,
        'the interval was divided by the number of environments again at each '
        'load: 2500, 625, 156, 39, 9',
      ),
      Sighting(
        'sebtheiler/tutorials',
        '#6',
        2020,
        'the target is updated as often as the online network',
      ),
      Sighting(
        'awjuliani/DeepRL-Agents',
        '#70',
        2018,
        'the target is updated at the same steps as the online network',
      ),
    ),
  ),
  Defect(
    'unit_confusion',
    'The period is counted in another unit than it is given in: frames, env '
    'steps or gradient steps.',
    'clock',
    True,
    unit_confusion,
    (
      Sighting(
        'astooke/rlpyt',
        '#150',
        2020,
        'a default of 312 updates is meant as 10,000 env steps and is 1,248 '
        'at the default replay ratio',
      ),
      Sighting(
        'ray-project/ray',
        '#48802',
        2024,
        'the clock of APPO counted sampled steps, not trained ones, so that '
        'the default copied after each batch',
      ),
    ),
  ),
  Defect(
    'double_rule',
    'Two rules move the target at once, a soft and a hard one.',
    'one_rule',
    True,
    double_rule,
    (
      Sighting(
        'anthonytorlucci/rlevo',
        '#182, repaired by #338',
        2026,
        'by default tau = 0.005 at each step, and a copy every 100 steps',
      ),
    ),
  ),
  Defect(
    'statistics_left_behind',
    "The target's statistics of batch normalization stay as they were born.",
    'whole',
    False,
    statistics_left_behind,
    (
      Sighting(
        'DLR-RM/stable-baselines3',
        '#996, repaired by #1004',
        2022,
        'statistics of batch normalization were not part of the update',
      ),
      Sighting(
        'Stable-Baselines-Team/stable-baselines3-contrib',
        '#99',
        2022,
        'the same in QR-DQN and TQC',
      ),
    ),
  ),
  Defect(
    'soft_birth',
    'The target is born by a soft update of other random parameters, so it '
    'begins far from the online network.',
    'birth',
    False,
    soft_birth,
    (
      Sighting(
        'rail-berkeley/softlearning',
        '#18',
        2018,
        'the target was born by a soft update instead of a copy',
      ),
    ),
  ),
  Defect(
    'tau_ignored',
    'The target moves by another tau than the one that was given.',
    'rate',
    True,
    tau_ignored,
    (
      Sighting(
        'mimoralea/gdrl',
        '#14',
        2021,
        'tau = 1.0, given for the first copy, was ignored',
      ),
    ),
  ),
  Defect(
    'once_per_block',
    'The target moves once in a block of gradient steps, where it should move '
    'after each or in the midst.',
    'clock',
    True,
    once_per_block,
    (
      Sighting(
        'nissymori/JAX-CORL',
        '#73, repaired by #74',
        2024,
        'the target of IQL moved once per compiled block instead of once per '
        'gradient step; results were run again',
      ),
    ),
  ),
  Defect(
    'wrong_direction',
    'The update writes the online network in place of the target.',
    'direction',
    True,
    wrong_direction,
    (
      Sighting(
        'reinshift/MADDPG_Multi_UAV_Roundup',
        '#10',
        2026,
        'suspected: online networks were written in place of targets',
      ),
    ),
  ),
)

DEFECTS: dict[str, Defect] = {defect.name: defect for defect in _ALL}
