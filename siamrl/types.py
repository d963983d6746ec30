"""The shared vocabulary: types that the parts of siamrl exchange.

Four clocks run in every experiment, and each quantity names the one it counts:

* `frames`: frames that the emulator advanced (4 per env step on Atari);
* `env_steps`: decisions of the agent, summed over parallel environments;
* `gradient_steps`: applications of the optimizer;
* `rounds`: passes of the collect -> regress -> sync cycle.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import chex
import jax
import numpy as np
import optax
from flax import struct

Params: TypeAlias = chex.ArrayTree
Metrics = dict[str, chex.Array]

# (online, target, gradient_steps) -> target, or with `Twin.reads_report`
# (online, target, gradient_steps, report) -> target
TargetUpdate = Callable[..., Any]


class Future(NamedTuple):
  """The K env steps that begin with each transition of a batch.

  Where `mask` is False, the last valid entries are repeated; if there are none,
  they are `a_tm1` and the observation acted upon. So no entry is ever from
  another episode.

  Attributes:
    a: int32 [B, K] or float32 [B, K, D]; a[:, k] is the action taken k steps
      after `obs_tm1`, and a[:, 0] is `a_tm1`.
    obs: [B, K, S, ...] or [B, K, ...]; obs[:, k] is the observation after
      a[:, k].
    mask: bool [B, K], whether obs[:, k] belongs to the same episode and was
      recorded already. Observations after a termination, or a lost life that
      counts as one, are masked out; the last observation of a truncated episode
      is not.
  """

  a: Any
  obs: Any
  mask: Any


class Transition(NamedTuple):
  """A batch of n-step transitions; every leaf leads with [B].

  Attributes:
    obs_tm1: [B, S, ...] observation acted upon, S stacked frames, oldest first;
      [B, ...] from environments that do not stack.
    a_tm1: action taken, int32 [B], or float32 [B, D] in [-1, 1].
    r_t: float32 [B] sum of the n discounted rewards that followed.
    discount_t: float32 [B] discount**n, and 0 where the episode terminated.
    obs_t: [B, S, ...] observation n steps later (fewer if the episode was
      truncated before); never one from after a reset.
    weight: float32 [B] factor of each transition's loss, for prioritized
      replay; None for 1.
    future: the K env steps that begin with the transition, for agents that look
      further ahead than n rewards; None if not asked for.
    ended: bool [B] whether the episode ended there, terminated or truncated,
      for agents that learn from transitions in order; None if not asked for.
  """

  obs_tm1: Any
  a_tm1: Any
  r_t: Any
  discount_t: Any
  obs_t: Any
  weight: Any = None
  future: Future | None = None
  ended: Any = None


class TrainState(struct.PyTreeNode):
  """The state of a learner, a pytree that can be saved as a checkpoint.

  Attributes:
    online_params: the parameters that gradients move.
    target_params: the twin, never in the same buffers. For most rules it has
      the structure of the online parameters; `Twin.params` always returns it in
      that structure.
    opt_state: the optimizer's state.
    gradient_steps: int32 [] optimizer steps applied so far.
    key: random key; each gradient step folds its number into it.
    previous_params: the online parameters before the last gradient step, for
      learners with a churn term; else None.
    traces: the memory of `Agent.traces`; None for agents without.
  """

  online_params: Params
  target_params: Any
  opt_state: optax.OptState
  gradient_steps: jax.Array
  key: jax.Array
  previous_params: Params | None = None
  traces: Any = None


# The functions of an agent. Arguments are passed by position, except for those
# behind a `*`.


class Init(Protocol):
  """The function that draws an agent's first parameters."""

  def __call__(self, key: chex.PRNGKey, /) -> Params:
    """Draws parameters.

    Args:
      key: the only source of randomness.

    Returns:
      The online parameters.
    """


class Bootstrap(Protocol):
  """The function whose answers targets are made of.

  It may return any pytree whose leaves lead with [B, A], such as values float32
  [B, A], or the probabilities [B, A, Z] of Z atoms. Rules of the twin may
  average several answers leaf by leaf, so a mean of answers must be an answer
  too: this holds for probabilities, but not for logits. An encoder returns the
  targets of its predictions, [B, ...].
  """

  def __call__(
    self,
    online_params: Params,
    target_params: Any,
    obs: Any,
    key: chex.PRNGKey,
    /,
  ) -> Any:
    """Answers observations, usually with the twin.

    Args:
      online_params: the parameters that gradients move.
      target_params: the twin.
      obs: [B, ...] observations.
      key: random key, for agents whose targets are random.

    Returns:
      A pytree whose leaves lead with [B, A]; A = 1 for an actor's own action.
    """


class Expected(Protocol):
  """The function that reads the answer of a `Bootstrap` as values."""

  def __call__(self, answer: Any, /) -> chex.Array:
    """Takes the expectation of an answer.

    Args:
      answer: answer of the agent's `Bootstrap` to observations [B, ...].

    Returns:
      float32 [B, A].
    """


# The metric that a loss may report of each transition, its loss without its
# weight. Only replays read it, by its name: rows have the mean of the weighted
# losses as `loss`.
TRANSITION_LOSS = 'transition_loss'


class Loss(Protocol):
  """The function that an agent minimizes.

  The twin is a separate argument, so `jax.grad` over the first one never
  differentiates it: the stop-gradient is an argument position.

  There are three variants:

  * `loss(online_params, target_params, batch, key)` learns toward the agent's
    own targets; `bootstrap=function` makes them of another function's answers.
  * `loss(..., bootstrap=None)` takes whole targets from `batch.r_t`: float32
    [B], or [B, K] with a column for each of K networks, or what
    `Distributions.taken` answers. Only values are
    learned, not an actor or latents, and the twin is ignored. Agents without
    rewards raise a ValueError.
  * `loss(..., step=gradient_steps)` learns the entries in `Agent.delayed` only
    when they are due. Without `step` they are always learned. Agents that delay
    nothing ignore it.
  """

  def __call__(
    self,
    online_params: Params,
    target_params: Any,
    batch: Any,
    key: chex.PRNGKey,
    /,
    *,
    bootstrap: Bootstrap | None = ...,
    step: chex.Numeric | None = ...,
  ) -> tuple[chex.Array, Metrics]:
    """Measures how far the online network is from its targets.

    Args:
      online_params: the parameters to differentiate by.
      target_params: the twin.
      batch: a `Transition`, or images [B, H, W, C].
      key: random key.
      bootstrap: function whose answers targets are made of, the agent's own by
        default; None if the batch holds whole targets.
      step: gradient steps taken before this one; None to learn every entry.

    Returns:
      The loss [], and metrics by name, each [], or [B] if every transition has
      one. A prioritized replay reads `td_error_abs` [B] or `transition_loss`
      [B], both at least 0.
    """


class Targets(Protocol):
  """The function that computes the numbers an agent learns toward."""

  def __call__(
    self,
    online_params: Params,
    target_params: Any,
    batch: Any,
    key: chex.PRNGKey,
    /,
    *,
    bootstrap: Bootstrap = ...,
  ) -> chex.Array:
    """Computes targets, without learning from them.

    Args:
      online_params: the parameters that gradients move.
      target_params: the twin.
      batch: as in `Loss`.
      key: as in `Loss`, so that both see the same targets.
      bootstrap: function whose answers targets are made of; the agent's own by
        default.

    Returns:
      float32 [B]: r_t, plus discount_t times a value, plus any bonus that the
      agent adds to the reward. Targets that are distributions are given by
      their means; an encoder returns its twin's answers [B, ...].
    """


class Values(Protocol):
  """The function that computes the values by which an agent acts."""

  def __call__(self, params: Params, obs: Any, /) -> chex.Array:
    """Evaluates observations.

    Args:
      params: parameters of the online network, or others in its structure.
      obs: [B, ...] observations.

    Returns:
      float32 [B, A]; A = 1 for the value of an actor's own action. An encoder
      returns its answers [B, ...].
    """


class Taken(Protocol):
  """The function that computes the values of actions that were taken."""

  def __call__(self, params: Params, batch: Transition, /) -> chex.Array:
    """Evaluates actions.

    Args:
      params: as in `Values`.
      batch: its `obs_tm1` and `a_tm1` are read.

    Returns:
      float32 [B], or [B, K] for K networks that learn side by side.
    """


class Noise(Protocol):
  """The function that draws the random numbers of one act.

  It is separate from acting so that a compiled loop can draw the noise of many
  steps at once.
  """

  def __call__(self, key: chex.PRNGKey, batch_size: int, /) -> Any:
    """Draws the noise of one act in B environments.

    Args:
      key: random key for this act alone.
      batch_size: B.

    Returns:
      A pytree for `Act`.
    """


class Act(Protocol):
  """The function that chooses actions with some exploration."""

  def __call__(
    self, params: Params, obs: Any, noise: Any, epsilon: chex.Numeric, /
  ) -> chex.Array:
    """Chooses actions.

    Args:
      params: as in `Values`.
      obs: [B, ...] observations.
      noise: noise from `Noise`, or from a `NoiseProcess`.
      epsilon: [] or [B] probability of a uniformly random action.

    Returns:
      int32 [B], or float32 [B, D] in [-1, 1].
    """


class Greedy(Protocol):
  """The function that chooses the actions an agent considers best."""

  def __call__(self, params: Params, obs: Any, /) -> chex.Array:
    """Chooses actions deterministically.

    Args:
      params: as in `Values`.
      obs: [B, ...] observations.

    Returns:
      int32 [B], or float32 [B, D] in [-1, 1].
    """


class NoiseProcess(NamedTuple):
  """A process that turns white noise into correlated noise.

  Attributes:
    init: B -> memory at the start of episodes; its leaves lead with [B].
    step: (memory, noise) -> (memory, noise for `Act`).
  """

  init: Callable[[int], Any]
  step: Callable[[Any, Any], tuple[Any, Any]]


class Acting(NamedTuple):
  """The functions by which an agent acts.

  Attributes:
    noise: draws the random numbers of `act` and `play`.
    act: chooses actions while the agent learns.
    greedy: chooses the actions that the agent considers best.
    play: chooses actions while the agent is evaluated; the same as `act` for
      agents that are evaluated as they learn.
    process: turns the noise into correlated noise for `act`; None leaves it
      unchanged. `play` always gets the noise as it was drawn.
  """

  noise: Noise
  act: Act
  greedy: Greedy
  play: Act
  process: NoiseProcess | None = None


def _as_values(answer: Any, /) -> chex.Array:
  return answer


class Distributions(NamedTuple):
  """The functions that look at distributions of returns.

  Attributes:
    taken: (params, batch) -> the distributions of the actions taken, leaves
      lead with [B]. The agent's `Loss` accepts them as whole targets.
    std: answer of the agent's `Bootstrap` -> float32 [B, A] standard
      deviations.
    distance: two answers -> float32 [B, A] Wasserstein-1 distances.
  """

  taken: Callable[[Params, Transition], Any]
  std: Callable[[Any], chex.Array]
  distance: Callable[[Any, Any], chex.Array]


class Traces(NamedTuple):
  """The gradients of an agent that learns from transitions in order.

  Each transition is learned from once, and what it leaves behind, such as
  eligibility traces, is a memory that later gradients are made of.

  Attributes:
    init: online_params -> memory.
    step: (agent, online_params, target_params, memory, batch, key) -> (descent,
      memory, metrics). The agent is the one with these traces, lifted by the
      rule; the batch holds one transition, which follows that of the step
      before; an optimizer takes the descent for a gradient.
  """

  init: Callable[[Params], Any]
  step: Callable[..., tuple[Params, Any, Metrics]]


class Agent(NamedTuple):
  """An agent as pure functions; it holds no arrays.

  Anything that learns with a twin is an agent: values of discrete actions, an
  actor with its critics, or an encoder of images.

  Attributes:
    init: draws the parameters.
    loss: computes the loss to differentiate. Agents that learn values report
      for each transition `td_error_abs`, the absolute TD error; those of
      discrete actions report `transition_loss`, too, its loss without its
      weight, of which rows have no mean.
    bootstrap: answers observations; targets are made of its answers.
    targets: computes the numbers that the agent learns toward.
    values: computes the values by which the agent acts.
    expected: reads the answer of `bootstrap` as values float32 [B, A]; by
      default the answer itself.
    taken: computes the values of actions taken; None for agents without
      actions.
    acting: the functions by which the agent acts; None for agents that do not
      act, such as encoders. `acting_of` raises if there are none.
    twinned: names of the entries of the parameters, a dict, that have a twin;
      or a function that makes such a dict of the parameters, in which a part
      may occur twice, to have two twins; None for all. `target_params` holds
      nothing else.
    delayed: names of the entries that are learned at every `delay`-th gradient
      step only, such as TD3's actor; see `Loss`.
    delay: gradient steps from one update of these entries to the next.
    distributions: looks at the distributions that `bootstrap` answers; None if
      it answers values.
    traces: computes the gradients in place of those of `loss`, for agents that
      learn from transitions in order; else None.
  """

  init: Init
  loss: Loss
  bootstrap: Bootstrap
  targets: Targets
  values: Values
  expected: Expected = _as_values
  taken: Taken | None = None
  acting: Acting | None = None
  twinned: tuple[str, ...] | Callable[[Params], Params] | None = None
  delayed: tuple[str, ...] = ()
  delay: int = 1
  distributions: Distributions | None = None
  traces: Traces | None = None


def acting_of(agent: Agent) -> Acting:
  """The functions by which an agent acts.

  Raises:
    ValueError: the agent does not act.
  """
  if agent.acting is None:
    raise ValueError(
      'the agent does not act: its `acting` is None, and an environment needs '
      'actions'
    )
  return agent.acting


class Twin(NamedTuple):
  """A rule: the content of a network's twin, how it moves, and its use.

  Attributes:
    update: (online, target, gradient_steps) -> target, at every sync.
    init: online_params -> target_params.
    params: (online, target) -> the twin in the structure of the online
      parameters, for comparisons.
    lift: agent -> agent, changed as the rule requires: with other values to
      bootstrap from, a term in the loss, or several networks.
    shift: (online, target, gradient_steps) -> online, at every sync; the twin
      is that of before. None if the online parameters stay.
    pull: (online, target) -> online, just before the optimizer's step is added,
      or None.
    clock: the rule that tells the twin's age in place of this one, for rules
      that do more than average past parameters, or read a report; else None.
    reads_report: whether `update` takes a fourth argument, `report`: the
      metrics of the gradient step before it, such as 'loss' or 'td_error_abs',
      each a mean over the batch []. So a rate can follow the TD error.
    birth: (online_params, fresh) -> target_params when a run begins, where
      `fresh` are drawn with a key of their own; None for `init`.
  """

  update: TargetUpdate
  init: Callable[[Params], Any]
  params: Callable[[Params, Any], Params] = lambda online, target: target
  lift: Callable[[Agent], Agent] = lambda agent: agent
  shift: Callable[[Params, Any, chex.Numeric], Params] | None = None
  pull: Callable[[Params, Any], Params] | None = None
  clock: 'Twin | None' = None
  reads_report: bool = False
  birth: Callable[[Params, Params], Any] | None = None


class Schedule(NamedTuple):
  """Relative speeds of collecting and learning.

  The speed of the third process, sync, is in the learner's `ClockedTwin`.

  Attributes:
    collect: env steps per round; 0 if all data were collected before.
    regress: gradient steps per round.
  """

  collect: int
  regress: int

  @classmethod
  def online(cls) -> 'Schedule':
    """The schedule of online Q-learning, whose twin moves at every step."""
    return cls(1, 1)

  @classmethod
  def dqn(cls, collect: int = 4, regress: int = 1) -> 'Schedule':
    """The schedule of DQN; the defaults are those of Mnih et al. (2015).

    Their twin moves every 10,000 env steps, `ClockedTwin(hard(), 2_500)`.
    """
    return cls(collect, regress)

  @classmethod
  def fitted(cls, iterations: int, steps: int, collect: int = 0) -> 'Schedule':
    """The schedule of fitted Q-iteration, with `iterations` regressions.

    Its twin moves after each regression, `ClockedTwin(hard(), steps)`.

    Args:
      iterations: target updates per round.
      steps: gradient steps of each regression.
      collect: env steps collected before them; 0 for a given data set.
    """
    return cls(collect, iterations * steps)


class Timestep(NamedTuple):
  """The answer of N parallel environments to one action each.

  An environment whose episode ended has already begun the next one: `obs` is
  then the first observation of the new episode, and `final_obs` holds the last
  one of the old.

  Attributes:
    obs: [N, S, ...] the observations to act on next.
    reward: float32 [N] raw rewards, never clipped.
    terminated: bool [N] whether the task itself ended, with no value beyond.
    truncated: bool [N] whether the episode was cut from outside, such as by a
      cap on frames; values go on.
    life_lost: bool [N] whether a life was lost in this step, even if the game
      ended with it. All False if there are no lives.
    final_obs: [N, S, ...] the old episode's last observation where
      `terminated | truncated`, and the rows of `obs` elsewhere.
  """

  obs: np.ndarray
  reward: np.ndarray
  terminated: np.ndarray
  truncated: np.ndarray
  life_lost: np.ndarray
  final_obs: np.ndarray


class Environments(Protocol):
  """N environments on the host, stepped together, without blocking.

  Call `reset` first, then `send` and `recv` in turns. The same seed and actions
  give the same answers, bit for bit.
  """

  num_envs: int
  num_actions: int  # 0 where actions are continuous
  action_dim: int  # D of continuous actions, else 0
  frame_shape: tuple[int, ...]  # of one frame, without the stack axis
  frame_dtype: np.dtype
  stack: int  # S, frames in an observation
  frames_per_step: int  # emulator frames per env step

  def reset(self) -> np.ndarray:
    """Starts N new episodes; returns observations [N, S, ...]."""

  def send(self, actions: np.ndarray) -> None:
    """Hands over actions and returns without waiting.

    Args:
      actions: int32 [N]; or float32 [N, D] in [-1, 1], which are scaled to the
        bounds of the environment.
    """

  def recv(self) -> Timestep:
    """Waits for the answer to the last `send`."""

  def close(self) -> None:
    """Frees all resources; no other method may be called afterward."""


class JaxTimestep(NamedTuple):
  """The answer of one JAX-native environment to one action.

  Attributes:
    obs: the observation after the action, even if it is the episode's last.
    reward: float32 [] raw reward.
    terminated: bool [] whether the task itself ended, with no value beyond.
    truncated: bool [] whether the episode was cut from outside, such as by a
      cap on steps, and did not terminate.
  """

  obs: jax.Array
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array


class JaxEnvironment(NamedTuple):
  """An environment as pure functions of one state, for callers to vmap.

  `step` never resets: callers call `reset` when an episode ends.

  Attributes:
    reset: key -> (env_state, obs).
    step: (env_state, action, key) -> (env_state, JaxTimestep). The action is
      int32 [], or float32 [D] in [-1, 1] and scaled to its bounds.
    num_actions: number of actions; 0 if they are continuous.
    obs_shape: shape of one observation.
    obs_dtype: dtype of observations: bool, an integer or a float.
    max_episode_steps: env steps after which an episode is truncated; None if
      none ever is.
    action_dim: D of continuous actions, else 0.
    reset_pool: how a compiled loop gets the first states of episodes. None:
      it calls `reset` for each env step, whether or not an episode ends there,
      which suits a cheap `reset`. P: it calls `reset` P times for a block of
      rounds, and each episode that begins in the block starts from one of these
      P states, drawn at random; an iteration is cut into equal blocks of at
      most 1,000 rounds. Each start is distributed as that of `reset`, but a
      block has at most P different ones. An environment that keeps a random key
      in its state needs None: otherwise episodes with the same start would be
      identical.
  """

  reset: Callable[[jax.Array], tuple[Any, jax.Array]]
  step: Callable[[Any, jax.Array, jax.Array], tuple[Any, JaxTimestep]]
  num_actions: int
  obs_shape: tuple[int, ...]
  obs_dtype: np.dtype
  max_episode_steps: int | None
  action_dim: int = 0
  reset_pool: int | None = None
