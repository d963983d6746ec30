"""A convolution whose gradients are fast on the CPU.

The forward pass is always `lax.conv_general_dilated`, except inside loops.
XLA:CPU is slow on two of the gradients, so on the CPU these are computed
differently:

* the kernel's gradient on few channels (the 8x8 stride 4 layer over a frame
  stack) goes through space-to-depth, as a 2x2 stride 1 layer on 64 channels;
* the input's gradient is one matrix product onto patches, which are then
  added up where they overlap, instead of a (dilated) convolution.

Inside a compiled loop (`lax.scan`) all convolutions are slow on XLA:CPU,
forward passes included; there each pass is one matrix product with patches.

Other platforms use plain convolutions and their ordinary gradients. A program
gets those of the platform that it is lowered for, wherever it is traced.
"""

import functools

from flax import linen as nn
from flax.typing import Initializer
import jax
from jax import lax
import jax.numpy as jnp

from siamrl.parameters import FieldError

# The kernel's gradient uses space-to-depth below this many input channels.
_FEW_CHANNELS = 16


def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Unpadded convolution: [B,H,W,C], [K,K,C,F] -> [B,H',W',F]."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _to_depth(
  x: jax.Array, kernel: jax.Array, s: int
) -> tuple[jax.Array, jax.Array]:
  """Turns a stride s convolution into stride 1; K must be a multiple of s.

  Args:
    x: [B,H,W,C]; rows and columns outside all windows are cropped.
    kernel: [K,K,C,F].
    s: the stride.

  Returns:
    x as [B,H/s,W/s,s*s*C] and the kernel as [K/s,K/s,s*s*C,F].
  """
  k, _, c, f = kernel.shape
  b = x.shape[0]
  h, w = ((n - k) // s * s + k for n in x.shape[1:3])
  x = x[:, :h, :w].reshape(b, h // s, s, w // s, s, c)
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // s, w // s, s * s * c)
  kernel = kernel.reshape(k // s, s, k // s, s, c, f)
  kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
  return x, kernel.reshape(k // s, k // s, s * s * c, f)


def _conv_by_depth(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """`_conv` by space-to-depth."""
  return _conv(*_to_depth(x, kernel, stride), 1)


def _conv_by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """`_conv` as shifted slices, concatenated, and one matrix product."""
  if stride > 1:
    x, kernel = _to_depth(x, kernel, stride)
  k, _, c, f = kernel.shape
  b, h, w, _ = x.shape
  h, w = h - k + 1, w - k + 1
  patches = jnp.concatenate(
    [x[:, i : i + h, j : j + w] for i in range(k) for j in range(k)], -1
  )
  y = patches.reshape(b * h * w, k * k * c) @ kernel.reshape(k * k * c, f)
  return y.reshape(b, h, w, f)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """`_conv` with gradients that are fast on the CPU (reverse mode only)."""
  return _apart(_conv(x, kernel, stride))


def _apart(y: jax.Array) -> jax.Array:
  """Keeps a convolution out of kernels of later reductions.

  Where nothing else reads its result, YNNPACK takes a convolution that ends in
  a reduction, such as the softmax over C51's atoms, into one kernel with it,
  and is then several times slower at the convolution. It has no selection, so
  one that changes nothing keeps the two apart. (An `optimization_barrier` is
  gone before kernels are formed.)
  """
  return jnp.where(jnp.isnan(y), jnp.nan, y)


def _cpu_conv_fwd(x, kernel, stride):
  return _apart(_conv(x, kernel, stride)), (x, kernel)


def _cpu_conv_bwd(stride, residuals, g):
  x, kernel = residuals
  by_kernel = _conv_by_depth if x.shape[-1] < _FEW_CHANNELS else _conv
  # Both are linear, so transposing runs no forward pass; under jit an unused
  # input gradient (the first layer's) is dropped.
  (d_kernel,) = jax.linear_transpose(lambda k: by_kernel(x, k, stride), kernel)(
    g
  )
  (d_x,) = jax.linear_transpose(
    lambda x: _conv_by_patches(x, kernel, stride), x
  )(g)
  return d_x, d_kernel


_cpu_conv.defvjp(_cpu_conv_fwd, _cpu_conv_bwd)


class Conv(nn.Module):
  """A square convolution with `nn.Conv`'s parameters 'kernel' and 'bias'.

  Attributes:
    features: number of output channels F.
    kernel_size: K, for both sides.
    stride: S, for both sides; if it does not divide K, gradients are the
      ordinary ones.
    padding: 'VALID' or 'SAME'.
    inside_loop: whether calls are compiled into a loop, such as a `lax.scan`
      over training steps; it affects only the speed on the CPU.
    kernel_init: initializer of the kernel, [K,K,C,F].
    bias_init: initializer of the bias, [F].
  """

  features: int
  kernel_size: int
  stride: int = 1
  padding: str = 'VALID'
  inside_loop: bool = False
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B,H,W,C] to [B,H',W',F].

    Raises:
      ValueError: the padding is unknown.
    """
    k, s = self.kernel_size, self.stride
    kernel = self.param(
      'kernel', self.kernel_init, (k, k, x.shape[-1], self.features)
    )
    bias = self.param('bias', self.bias_init, (self.features,))
    # Like `nn.Conv`, since `lax` refuses float32 images with bfloat16 kernels.
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
    if self.padding == 'SAME':
      pads = lax.padtype_to_pads(x.shape[1:3], (k, k), (s, s), 'SAME')
      x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    elif self.padding != 'VALID':
      raise FieldError('padding', self.padding, 'is neither VALID nor SAME')
    conv = functools.partial(_conv, stride=s)
    if k % s:
      return conv(x, kernel) + bias
    of_cpu = _conv_by_patches if self.inside_loop else _cpu_conv
    y = lax.platform_dependent(
      x, kernel, cpu=lambda x, kernel: of_cpu(x, kernel, s), default=conv
    )
    return y + bias
