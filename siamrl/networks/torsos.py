"""Torsos: from observations [B, ...] to features [B, F]."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp
from flax import linen as nn

from siamrl.networks.activations import normalized_leaky, rectified
from siamrl.networks.conv import Conv
from siamrl.networks.dense import Dense, make_dense
from siamrl import parameters
from siamrl.networks.initializers import INITIALIZERS
from siamrl.parameters import WHOLE, FieldError, Parameter


class NatureCNN(nn.Module):
  """The convolutions of Mnih et al. (2015), Methods; a head adds the rest.

  Attributes:
    padding: 'VALID' as in the paper (84 x 84 frames give F = 7 x 7 x 64 = 3,136
      features), or 'SAME' as in Dopamine's JAX agents (F = 11 x 11 x 64 =
      7,744).
    initializer: a key of `INITIALIZERS`.
    layer_norm: whether to normalize each layer before its ReLU.
    flat: whether the output is [B, F]; otherwise it is [B, H, W, 64].
  """

  padding: str = 'VALID'
  initializer: str = 'lecun_normal'
  layer_norm: bool = False
  flat: bool = True

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    """Maps uint8 [B, S, H, W] frames to float32 [B, F]."""
    chex.assert_rank(obs, 4)
    chosen = INITIALIZERS[self.initializer]
    # Flax convolves over [B, H, W, C]: the frames of the stack are channels.
    x = jnp.moveaxis(obs, 1, -1).astype(jnp.float32) / 255
    for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
      fan_in = size * size * x.shape[-1]
      layer = Conv(
        features,
        size,
        stride,
        self.padding,
        kernel_init=chosen.kernel,
        bias_init=chosen.bias(fan_in),
      )
      x = rectified(layer, x, layer_norm=self.layer_norm)
    return x.reshape(x.shape[0], -1) if self.flat else x


class MinAtarCNN(nn.Module):
  """The convolution of Young & Tian (2019) on MinAtar's 10 x 10 boards.

  MinAtar's whole training loop can be compiled, so the convolution has the form
  that is fast inside a loop.

  Attributes:
    initializer: a key of `INITIALIZERS`.
    padding: 'VALID' as in the paper, or 'SAME' as in Dopamine.
    layer_norm: whether to normalize the channels at each position before the
      ReLU.
    flat: whether the output is [B, F]; otherwise it is [B, H, W, 16].
  """

  initializer: str = 'lecun_normal'
  padding: str = 'VALID'
  layer_norm: bool = False
  flat: bool = True

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    """Maps boards [B, 10, 10, C], bool or numbers, to float32 [B, F].

    F is 8 x 8 x 16 = 1,024, or 1,600 with padding 'SAME'.
    """
    chex.assert_rank(obs, 4)
    chosen = INITIALIZERS[self.initializer]
    layer = Conv(
      16,
      3,
      padding=self.padding,
      inside_loop=True,
      kernel_init=chosen.kernel,
      bias_init=chosen.bias(3 * 3 * obs.shape[-1]),
    )
    x = rectified(layer, obs.astype(jnp.float32), layer_norm=self.layer_norm)
    return x.reshape(x.shape[0], -1) if self.flat else x


class MLP(nn.Module):
  """Dense layers with ReLUs over the flattened observation.

  Attributes:
    sizes: units of each hidden layer.
    initializer: a key of `INITIALIZERS`.
    bounds: (lowest, highest) value of each number of the observation, or of all
      of them, which are mapped to -1 and 1; None for no scaling.
    layer_norm: whether to normalize each layer before its ReLU.
    noisy_std: see `NoisyDense`; 0 for layers without noise.
  """

  sizes: Sequence[int] = (120, 84)
  initializer: str = 'lecun_normal'
  bounds: (
    tuple[Sequence[float], Sequence[float]] | tuple[float, float] | None
  ) = None
  layer_norm: bool = False
  noisy_std: float = 0.0

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    """Maps [B, ...] observations to float32 [B, sizes[-1]]."""
    x = obs.reshape(obs.shape[0], -1).astype(jnp.float32)
    if self.bounds is not None:
      low, high = (jnp.asarray(bound, jnp.float32) for bound in self.bounds)
      x = 2 * (x - low) / (high - low) - 1
    for size in self.sizes:
      layer = make_dense(size, self.initializer, self.noisy_std)
      x = rectified(layer, x, layer_norm=self.layer_norm)
    return x


class StreamTorso(nn.Module):
  """The hidden layers of Elsayed et al. (2024), for boards and vectors.

  They are those of stream_q_minatar.py and stream_q.py in
  mohmdelsayed/streaming-drl, with sparse weights: on boards a convolution of 16
  channels and a dense layer, on vectors two dense layers.

  Attributes:
    stream_units: units of the dense layers; the source has 128 on boards, 32 on
      vectors.
  """

  stream_units: int = 128

  @nn.compact
  def __call__(self, obs: chex.Array) -> chex.Array:
    """Maps boards [B, H, W, C] or others [B, ...] to [B, stream_units].

    Raises:
      FieldError: the observations are frames.
    """
    x, chosen = obs.astype(jnp.float32), INITIALIZERS['sparse']
    dense_layers = 2
    if x.ndim == 4:
      if min(x.shape[2:]) > 32:
        raise FieldError('network', 'stream', 'must not be given for frames')
      layer = Conv(16, 3, inside_loop=True, kernel_init=chosen.kernel)
      x, dense_layers = normalized_leaky(layer, x), 1
    x = x.reshape(x.shape[0], -1)
    for _ in range(dense_layers):
      x = normalized_leaky(Dense(self.stream_units, 'sparse'), x)
    return x


class Torso(NamedTuple):
  """A torso as a launcher offers it.

  Attributes:
    make: builds the module from the parameters in `takes`, as keywords.
    takes: names of its parameters in `PARAMETERS`.
    summary: one line for a help text.
  """

  make: Callable[..., nn.Module]
  takes: tuple[str, ...]
  summary: str


# The registered torsos; networks for some observations have their own.
TORSOS: dict[str, Torso] = {}
PARAMETERS: dict[str, Parameter] = {}  # the parameters of all torsos


def register(
  name: str, make: Callable[..., nn.Module], summary: str, **new: Parameter
) -> None:
  """Adds a torso to `TORSOS`.

  Launchers offer it as --network=NAME, with a flag for each parameter that it
  brings; the head is chosen by --head.

  Args:
    name: name of the torso.
    make: builds the module, which maps [B, S, ...] observations to [B, F]
      features. Its arguments are parameters: those of `PARAMETERS`, and its
      own.
    summary: one line for a help text.
    **new: the torso's own parameters by name; none is traced, since they may
      shape arrays.

  Raises:
    ValueError: the name is taken, or a parameter is not described.
  """
  # A module's class takes two more arguments, which Flax itself fills in.
  words = parameters.taken_by(make)
  takes = tuple(word for word in words if word not in ('parent', 'name'))
  new = {key: about._replace(traced=False) for key, about in new.items()}
  parameters.add('network', name, TORSOS, takes, PARAMETERS, new)
  TORSOS[name] = Torso(make, takes, summary)


register(
  'stream',
  StreamTorso,
  'sparse layers for boards or vectors, normalized before leaky ReLUs (Elsayed '
  'et al. 2024); use with --hidden_units=0',
  stream_units=Parameter(
    WHOLE, 'Units of the dense layers of --network=stream', int, default=128
  ),
)
