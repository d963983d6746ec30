"""The shared vocabulary: what flows between the parts of siamrl.

Four clocks run in every experiment, and each quantity names the one it counts:

* `frames`: frames that the emulator advanced (4 to an env step on Atari);
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

  Where `mask` does not hold, the last entries that count are repeated; if there
  is none, these are `a_tm1` and the observation acted upon. So nothing is ever
  from another episode.

  Attributes:
    a: int32 [B, K] or float32 [B, K, D]; a[:, k] is the action taken k steps
      after `obs_tm1`, and a[:, 0] is `a_tm1`.
    obs: [B, K, S, ...] or [B, K, ...]; obs[:, k] is what followed a[:, k].
    mask: bool [B, K], whether obs[:, k] is of the same episode and taken
      already. What follows a termination does not count, be it a lost life; the
      last observation of a truncated episode does.
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
    obs_t: [B, S, ...] observation n steps later (fewer where the episode was
      truncated before); never one from after a reset.
    weight: float32 [B] factor of each transition's loss, as prioritized replay
      has it; None for 1.
    future: the steps that begin with it, of any length K, for agents that look
      further ahead than at n rewards; None where nobody asked for them.
  """

  obs_tm1: Any
  a_tm1: Any
  r_t: Any
  discount_t: Any
  obs_t: Any
  weight: Any = None
  future: Future | None = None


class TrainState(struct.PyTreeNode):
  """All that learning changes: a checkpoint of the learner is this pytree.

  Attributes:
    online_params: the parameters that gradients move.
    target_params: the twin, never in the same buffers. Most rules have it in
      the structure of the online parameters; `Twin.params` shows it so.
    opt_state: the optimizer's state.
    gradient_steps: int32 [] optimizer steps applied so far.
    key: each gradient step folds its number into it for a key of its own.
  """

  online_params: Params
  target_params: Any
  opt_state: optax.OptState
  gradient_steps: jax.Array
  key: jax.Array


# What an agent is made of. Arguments are passed by position, except for those
# behind a `*`.


class Init(Protocol):
  """The function that draws an agent's first parameters."""

  def __call__(self, key: chex.PRNGKey, /) -> Params:
    """Draws parameters.

    Args:
      key: the only source of chance.

    Returns:
      The online parameters.
    """


class Bootstrap(Protocol):
  """The function that gives what targets are made of.

  It may answer any pytree whose leaves lead with [B, A], such as values float32
  [B, A], or the probabilities [B, A, Z] of Z atoms. Rules of the twin may
  average several answers leaf by leaf, so a mean of answers has to be an answer
  too: it is for probabilities, and it is not for logits. An encoder answers
  what its predictions are to meet, [B, ...].
  """

  def __call__(
    self,
    online_params: Params,
    target_params: Any,
    obs: Any,
    key: chex.PRNGKey,
    /,
  ) -> Any:
    """Answers observations, for the most part with the twin.

    Args:
      online_params: the parameters that gradients move.
      target_params: the twin.
      obs: [B, ...] observations.
      key: for agents whose targets are random.

    Returns:
      A pytree whose leaves lead with [B, A]; A = 1 for an actor's own action.
    """


class Expected(Protocol):
  """The function that reads the answer of a `Bootstrap` as values."""

  def __call__(self, answer: Any, /) -> chex.Array:
    """Takes the expectation of an answer.

    Args:
      answer: of the agent's `Bootstrap` to observations [B, ...].

    Returns:
      float32 [B, A].
    """


class Loss(Protocol):
  """The function that an agent learns by.

  The twin is an argument of its own, so `jax.grad` over the first one never
  differentiates it: the stop-gradient is an argument position.

  There are three variants:

  * `loss(online_params, target_params, batch, key)` learns toward the agent's
    own targets; `bootstrap=function` makes them of another function's answers.
  * `loss(..., bootstrap=None)` takes whole targets from `batch.r_t`: float32
    [B], or [B, K] with a column for each of K networks. Only values are
    learned; an actor and latents are left out, and the twin is not looked at.
    Agents without rewards raise a ValueError.
  * `loss(..., step=gradient_steps)` learns the entries in `Agent.delayed` only
    where they are due. Without `step` they are always learned. Agents that
    delay nothing do not read it.
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
      key: for whatever is random in it.
      bootstrap: what targets are made of; the agent's own by default, and None
        where the batch holds whole targets.
      step: gradient steps taken before this one; None to leave nothing out.

    Returns:
      The loss [], and metrics by name, each [] or, where every transition has
      one, [B].
    """


class Targets(Protocol):
  """The function that gives the numbers an agent learns toward."""

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
      bootstrap: what targets are made of; the agent's own by default.

    Returns:
      float32 [B]: r_t, plus discount_t times a value, plus what the agent adds
      to the reward. Of targets that are distributions these are the means, of
      an encoder its twin's answers [B, ...].
    """


class Values(Protocol):
  """The function that gives the values by which an agent acts."""

  def __call__(self, params: Params, obs: Any, /) -> chex.Array:
    """Evaluates observations.

    Args:
      params: of the online network, or others in its structure.
      obs: [B, ...] observations.

    Returns:
      float32 [B, A]; A = 1 for the value of an actor's own action. An encoder
      gives its answers [B, ...].
    """


class Taken(Protocol):
  """The function that gives the values of actions that were taken."""

  def __call__(self, params: Params, batch: Transition, /) -> chex.Array:
    """Evaluates actions.

    Args:
      params: as in `Values`.
      batch: its `obs_tm1` and `a_tm1` are read.

    Returns:
      float32 [B], or [B, K] for K networks that learn side by side.
    """


class Noise(Protocol):
  """The function that draws all chance of one act.

  It is apart from acting so that a compiled loop can draw the noise of many
  steps at once.
  """

  def __call__(self, key: chex.PRNGKey, batch_size: int, /) -> Any:
    """Draws the noise of one act in B environments.

    Args:
      key: of this act alone.
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
      noise: of `Noise`, or what a `NoiseProcess` made of it.
      epsilon: [] or [B] probability of a uniformly random action.

    Returns:
      int32 [B], or float32 [B, D] in [-1, 1].
    """


class Greedy(Protocol):
  """The function that chooses the actions that an agent thinks best."""

  def __call__(self, params: Params, obs: Any, /) -> chex.Array:
    """Chooses actions without any chance.

    Args:
      params: as in `Values`.
      obs: [B, ...] observations.

    Returns:
      int32 [B], or float32 [B, D] in [-1, 1].
    """


class NoiseProcess(NamedTuple):
  """Noise that remembers, such as Ornstein and Uhlenbeck's, made of white one.

  Attributes:
    init: B -> memory, whose leaves lead with [B]; an episode starts with it.
    step: (memory, noise) -> (memory, noise for `Act`).
  """

  init: Callable[[int], Any]
  step: Callable[[Any, Any], tuple[Any, Any]]


class Acting(NamedTuple):
  """The functions by which an agent acts.

  Attributes:
    noise: draws the chance that `act` and `play` need.
    act: chooses actions while the agent learns.
    greedy: chooses the actions that it thinks best.
    play: chooses actions while the agent is evaluated; `act` once more for
      agents that are evaluated as they learn.
    process: turns the noise into noise that `act` gets; None leaves it as it
      is. `play` always gets the noise as it was drawn.
  """

  noise: Noise
  act: Act
  greedy: Greedy
  play: Act
  process: NoiseProcess | None = None


def _as_values(answer: Any, /) -> chex.Array:
  return answer


class Agent(NamedTuple):
  """A learner as pure functions; it holds no arrays.

  Whatever learns with a twin is one: values of discrete actions, an actor with
  its critics, an encoder of images.

  Attributes:
    init: draws the parameters.
    loss: is what gradients are taken of.
    bootstrap: gives what targets are made of.
    targets: gives the numbers that it learns toward.
    values: gives the values by which it acts.
    expected: reads the answer of `bootstrap` as values float32 [B, A]; by
      default the answer is that already.
    taken: gives the values of actions taken; None for agents without actions.
    acting: holds the functions by which it acts; None for agents that do not,
      such as encoders. `acting_of` gives them to whoever cannot do without.
    twinned: names the entries of the parameters, a dict, that have a twin; or
      makes such a dict of the parameters, in which a part may be twice, to have
      two twins; None for all. `target_params` hold nothing else.
    delayed: names the entries that are learned at every `delay`-th gradient
      step only, such as TD3's actor; see `Loss`.
    delay: gradient steps from one step of these entries to the next.
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
  """A rule: what a network's twin is, how it moves, and what it is used for.

  Attributes:
    update: (online, target, gradient_steps) -> target, at every sync.
    init: online_params -> target_params.
    params: (online, target) -> the twin in the structure of the online
      parameters, for whoever compares the two.
    lift: agent -> agent. What the rule asks of the agent besides parameters
      that stand still: other values to bootstrap from, a term in the loss,
      several networks.
    shift: (online, gradient_steps) -> online, at every sync; it gets what
      `update` gets. None where the online parameters stay.
    pull: (online, target) -> online, just before the optimizer's step is added,
      or None.
    clock: the rule that tells the twin's age in place of this one, if this one
      does more than to average past parameters, or reads a report; else None.
    reads_report: whether `update` takes a fourth argument, `report`: what the
      gradient step that it follows reported, such as 'loss' or 'td_error_abs',
      each a mean over the batch []. So a rate can follow the TD error.
  """

  update: TargetUpdate
  init: Callable[[Params], Any]
  params: Callable[[Params, Any], Params] = lambda online, target: target
  lift: Callable[[Agent], Agent] = lambda agent: agent
  shift: Callable[[Params, chex.Numeric], Params] | None = None
  pull: Callable[[Params, Any], Params] | None = None
  clock: 'Twin | None' = None
  reads_report: bool = False


class Schedule(NamedTuple):
  """Relative speeds of collecting and learning.

  The third process, sync, has its speed in the learner's `ClockedTwin`.

  Attributes:
    collect: env steps per round; 0 where all data were collected before.
    regress: gradient steps per round.
  """

  collect: int
  regress: int

  @classmethod
  def online(cls) -> 'Schedule':
    """Online Q-learning, with a twin that moves at every gradient step."""
    return cls(1, 1)

  @classmethod
  def dqn(cls, collect: int = 4, regress: int = 1) -> 'Schedule':
    """DQN; the defaults are those of Mnih et al. (2015).

    Their twin moves every 10,000 env steps, `ClockedTwin(hard(), 2_500)`.
    """
    return cls(collect, regress)

  @classmethod
  def fitted(cls, iterations: int, steps: int, collect: int = 0) -> 'Schedule':
    """Fitted Q-iteration: `iterations` regressions, each carried to its end.

    Its twin moves after each of them, `ClockedTwin(hard(), steps)`.

    Args:
      iterations: target updates per round.
      steps: gradient steps of each regression.
      collect: env steps gathered before; 0 for a given data set.
    """
    return cls(collect, iterations * steps)


class Timestep(NamedTuple):
  """What N parallel environments answer to one action each.

  An environment whose episode ended has already begun the next one: `obs` is
  then the first observation of the new episode, and `final_obs` holds the last
  one of the old.

  Attributes:
    obs: [N, S, ...] the observations to act on next.
    reward: float32 [N] raw rewards, never clipped.
    terminated: bool [N] the task itself ended: no value beyond it.
    truncated: bool [N] cut from outside (a cap on frames): values go on.
    life_lost: bool [N] a life was lost in this step, whether or not the game
      ended with it. All False where there are no lives.
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

  The order of calls is `reset`, then `send`, `recv` in turns. The same seed and
  actions give the same answers, bit for bit.
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
      actions: int32 [N]; or float32 [N, D] in [-1, 1], which are stretched to
        the bounds of the environment.
    """

  def recv(self) -> Timestep:
    """Waits for the answer to the last `send`."""

  def close(self) -> None:
    """Frees what the environments hold; nothing may be called after."""


class JaxTimestep(NamedTuple):
  """What one JAX-native environment answers to one action.

  Attributes:
    obs: the observation after the action, be it the episode's last one.
    reward: float32 [] raw.
    terminated: bool [] the task itself ended: no value beyond it.
    truncated: bool [] cut from outside (a cap on steps), and not terminated.
  """

  obs: jax.Array
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array


class JaxEnvironment(NamedTuple):
  """An environment as pure functions of one state, for callers to vmap.

  `step` never resets: whoever steps an environment to its end calls `reset`.

  Attributes:
    reset: key -> (env_state, obs).
    step: (env_state, action, key) -> (env_state, JaxTimestep). The action is
      int32 [], or float32 [D] in [-1, 1] and stretched to its bounds.
    num_actions: actions are 0 to num_actions - 1; 0 if they are continuous.
    obs_shape: of one observation.
    obs_dtype: bool, an integer or a float.
    max_episode_steps: env steps after which an episode is truncated; None if
      none ever is.
    action_dim: D of continuous actions, else 0.
    reset_pool: how a compiled loop gets the first states of episodes. None: it
      calls `reset` ahead of time for each env step, whether or not an episode
      ends there, which is right where `reset` is cheap. P: it calls `reset` P
      times for a block of rounds, and each episode that begins in the block
      begins with one of these P, drawn at random; an iteration is cut into
      equal blocks of at most 1,000 rounds. Each start is distributed as `reset`
      has it, but those of a block are P at most. An environment that keeps a
      random key in its state needs None: episodes with one start would be the
      same.
  """

  reset: Callable[[jax.Array], tuple[Any, jax.Array]]
  step: Callable[[Any, jax.Array, jax.Array], tuple[Any, JaxTimestep]]
  num_actions: int
  obs_shape: tuple[int, ...]
  obs_dtype: np.dtype
  max_episode_steps: int | None
  action_dim: int = 0
  reset_pool: int | None = None
