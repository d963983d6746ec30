"""A twin that is, at each gradient step, the one of several that agrees best.

It needs the values that should be learned. So it is for studies of what the
choice of a rule could achieve, and no rule to learn by.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from siamrl import twins
from siamrl.diagnostics.shadows import gradient_cosine
from siamrl.diagnostics.values import KnownValues, gradient_toward
from siamrl.learner import ClockedTwin, make_move
from siamrl.parameters import check_name
from siamrl.types import Agent, Metrics, Params, Transition, Twin

CHOICES = {
  'best': 'the candidate whose gradient agrees best with known values',
  'worst': 'the one that agrees worst',
  'chance': 'any one, all with the same chance',
}

# Folded into the key of a gradient step to draw a candidate.
_CHOOSE = 2**32 - 4


class Candidates(NamedTuple):
  """The twins to choose from.

  Attributes:
    targets: target parameters of each candidate, by its name.
    chosen: int32 [] number of the candidate at the last gradient step.
  """

  targets: dict[str, Any]
  chosen: jax.Array


def agreeing(
  candidates: Mapping[str, ClockedTwin],
  known: KnownValues,
  choice: str = 'best',
) -> Twin:
  """Each gradient step is that of the candidate that agrees best.

  The gradient of each candidate is computed on the batch, and that toward known
  values, see `gradient_toward`. The step takes the gradient with the largest
  cosine to the latter; of equals, that of the first candidate. Losses report
  `chosen/NAME`, 1 for the candidate chosen and 0 for others. With one candidate
  it is that rule. Between gradient steps, as for the panel, the twin is the
  candidate that was chosen last, but its age is that of the first one.

  Args:
    candidates: the rules by name, for which the conditions of `shadows_init`
      hold. They count gradient steps, and this rule must be applied at each.
    known: returns the values that should be learned.
    choice: a key of `CHOICES`.

  Raises:
    ValueError: there is no candidate, one of them reads reports or shifts
      networks, or the choice is unknown.
  """
  check_name('choice', choice, CHOICES)
  if not candidates:
    raise ValueError('there must be a candidate')
  for name, rule in candidates.items():
    if rule.twin.reads_report or rule.twin.shift is not None:
      raise ValueError(
        f'{name!r} cannot be a candidate: it reads reports or shifts networks'
      )
  moves = {name: make_move(rule) for name, rule in candidates.items()}

  def init(online: Params) -> Candidates:
    return Candidates(
      {name: rule.twin.init(online) for name, rule in candidates.items()},
      jnp.zeros((), jnp.int32),
    )

  def update(
    online: Params,
    target: Candidates,
    gradient_steps: chex.Numeric,
    report: Metrics,
  ) -> Candidates:
    chosen = jnp.stack([report[f'chosen/{name}'] for name in candidates])
    return Candidates(
      {
        name: move(online, target.targets[name], gradient_steps, None)[1]
        for name, move in moves.items()
      },
      jnp.argmax(chosen).astype(jnp.int32),
    )

  def params(online: Params, target: Candidates) -> Params:
    return _picked(
      [
        rule.twin.params(online, target.targets[name])
        for name, rule in candidates.items()
      ],
      target.chosen,
    )

  first = next(iter(candidates.values()))
  return Twin(
    update,
    init,
    params=params,
    lift=lambda agent: _lifted(agent, candidates, known, choice),
    clock=twins.periodic(first.sync, first.twin),
    reads_report=True,
  )


def _picked(trees: list[Any], index: chex.Numeric) -> Any:
  """One of several trees of the same structure."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves)[index], *trees)


def _lifted(
  agent: Agent,
  candidates: Mapping[str, ClockedTwin],
  known: KnownValues,
  choice: str,
) -> Agent:
  """The agent as `agreeing` lifts it."""
  lifted = {name: rule.twin.lift(agent) for name, rule in candidates.items()}

  def of_chosen(function: str) -> Callable[..., Any]:
    """A function of the agent, by the candidate that was chosen last."""

    def answer(online, target, *args, **kwargs):
      return _picked(
        [
          getattr(each, function)(online, target.targets[name], *args, **kwargs)
          for name, each in lifted.items()
        ],
        target.chosen,
      )

    return answer

  def choose(
    grads: list[Params], online: Params, batch: Transition, key: chex.PRNGKey
  ) -> chex.Array:
    if choice == 'chance':
      drawn = jax.random.fold_in(key, _CHOOSE)
      return jax.random.randint(drawn, (), 0, len(grads))
    toward = gradient_toward(agent, known, online, batch, key)
    scores = jnp.stack([gradient_cosine(each, toward) for each in grads])
    scores = scores if choice == 'best' else -scores
    return jnp.argmax(jnp.where(jnp.isnan(scores), -jnp.inf, scores))

  def loss(online, target, batch, key, **kwargs):
    if kwargs.get('bootstrap', agent.bootstrap) is None:  # whole targets
      return agent.loss(online, target, batch, key, **kwargs)
    here = jax.lax.stop_gradient(online)
    found = [
      jax.value_and_grad(each.loss, has_aux=True)(
        here, target.targets[name], batch, key, **kwargs
      )
      for name, each in lifted.items()
    ]
    grads = [gradient for _, gradient in found]
    index = choose(grads, here, batch, key)
    value, metrics = _picked([answer for answer, _ in found], index)
    # A value of 0 with the gradient that was chosen.
    slopes = jax.tree.map(
      lambda o, h, g: jnp.sum((o - h) * g), online, here, _picked(grads, index)
    )
    value += sum(jax.tree.leaves(slopes))
    chosen = {
      f'chosen/{name}': (index == number).astype(jnp.float32)
      for number, name in enumerate(lifted)
    }
    return value, metrics | {'loss': value} | chosen

  return agent._replace(
    loss=loss, bootstrap=of_chosen('bootstrap'), targets=of_chosen('targets')
  )
