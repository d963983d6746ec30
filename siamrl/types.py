"""The shared vocabulary: what flows between the parts of siamrl.

Four clocks run in every experiment, and each quantity names the one it counts:

* `frames`: frames that the emulator advanced (4 to an env step on Atari);
* `env_steps`: decisions of the agent, summed over parallel environments;
* `gradient_steps`: applications of the optimiser;
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
# (online_params, target_params, obs [B, ...], key) -> [B, A]
Bootstrap = Callable[[Params, Any, Any, chex.PRNGKey], chex.Array]


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
    weight: float32 [B] factor of each transition's loss, as prioritised replay
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
    opt_state: the optimiser's state.
    gradient_steps: int32 [] optimiser steps applied so far.
    key: each gradient step folds its number into it for a key of its own.
  """

  online_params: Params
  target_params: Any
  opt_state: optax.OptState
  gradient_steps: jax.Array
  key: jax.Array


class NoiseProcess(NamedTuple):
  """Makes noise that remembers, such as Ornstein and Uhlenbeck's, of white.

  Attributes:
    init: B -> memory, whose leaves lead with [B]; an episode starts with it.
    step: (memory, noise) -> (memory, noise for `Agent.act`).
  """

  init: Callable[[int], Any]
  step: Callable[[Any, Any], tuple[Any, Any]]


class Agent(NamedTuple):
  """A learner as pure functions; it holds no arrays.

  Whatever learns with a twin is one: values of discrete actions, an actor with
  its critics, an encoder of images. The last kind does not act, and has None
  where it has nothing to say.

  Attributes:
    init: key -> params.
    loss: (online_params, target_params, batch, key) -> (scalar, metrics). The
      twin is an argument of its own, so `jax.grad` over the first one never
      differentiates it: the stop-gradient is an argument position. A keyword
      `bootstrap` takes the place of the agent's own; `bootstrap=None` says that
      the batch's `r_t` are whole targets already, [B] or [B, K] for each of K
      networks, and that nothing but values is to be learnt.
    bootstrap: (online_params, target_params, obs [B, ...], key) -> float32
      [B, A], what its targets are made of: the values of the observations, or
      an encoder's answers to them.
    targets: (online_params, target_params, batch, key) -> float32 [B] or
      [B, A], what it learns towards. It has the keyword too.
    values: (params, obs [B, ...]) -> float32 [B, A], by which it acts; of an
      actor's own action, with A = 1; or an encoder's answers.
    taken: (params, batch) -> float32 [B], values of the actions taken, or
      [B, K] those of each of K networks that learn side by side.
    noise: (key, B) -> all that acting in B environments once needs of chance.
      Apart from acting, so that a compiled loop can draw it for many steps at
      once.
    act: (params, obs [B, ...], noise, epsilon) -> [B] or [B, D] actions, as in
      `Transition`.
    greedy: (params, obs [B, ...]) -> actions, those that it thinks best.
    play: (params, obs [B, ...], noise, epsilon) -> actions, where it is
      evaluated; None for `act`.
    process: what becomes of the noise before `act` gets it; None for nothing.
    twinned: the entries of the parameters, a dict, that have a twin; or what
      makes such a dict of the parameters, in which a part may be twice, to have
      two twins; None for all. `target_params` hold nothing else.
    delayed: the entries that are learnt at every `delay`-th gradient step only,
      such as TD3's actor. `loss` then takes a keyword `step`, the gradient
      steps taken before this one; without it nothing is left out.
    delay: gradient steps from one step of these entries to the next.
  """

  init: Callable[[chex.PRNGKey], Params]
  loss: Callable[..., tuple[chex.Array, Metrics]]
  # Typed as if they were there: who calls one knows that it is.
  bootstrap: Bootstrap = None  # type: ignore[assignment]
  targets: Callable[..., chex.Array] = None  # type: ignore[assignment]
  values: Callable[[Params, Any], chex.Array] = None  # type: ignore[assignment]
  taken: Callable[[Params, Any], chex.Array] = None  # type: ignore[assignment]
  noise: Callable[[chex.PRNGKey, int], Any] = None  # type: ignore[assignment]
  act: Callable[..., chex.Array] = None  # type: ignore[assignment]
  greedy: Callable[[Params, Any], chex.Array] = None  # type: ignore[assignment]
  play: Callable[..., chex.Array] | None = None
  process: NoiseProcess | None = None
  twinned: tuple[str, ...] | Callable[[Params], Params] | None = None
  delayed: tuple[str, ...] = ()
  delay: int = 1


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
    pull: (online, target) -> online, just before the optimiser's step is added,
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
  """

  reset: Callable[[jax.Array], tuple[Any, jax.Array]]
  step: Callable[[Any, jax.Array, jax.Array], tuple[Any, JaxTimestep]]
  num_actions: int
  obs_shape: tuple[int, ...]
  obs_dtype: np.dtype
  max_episode_steps: int | None
  action_dim: int = 0
