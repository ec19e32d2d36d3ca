"""Layers with a kernel: dense maps and convolutions. Parameters are float32, arithmetic is in the dtype of x."""

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.devices import gathered
from diffusion_jax.nets.conv import convolve
from diffusion_jax.nets.initial import Scheme, fan_average
from diffusion_jax.nets.product import product
from diffusion_jax.types import Array


class Dense(nn.Module):
    """Map the last axis to `width` numbers; given several inputs, each gives an equal share of them."""

    width: int
    initial: Scheme = fan_average()
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array, *others: Array) -> Array:
        kernel = _kernel(self, (x.shape[-1], self.width), x)
        if all(other is x for other in others):
            y = product(x, kernel)
        else:
            shares = jnp.split(kernel, 1 + len(others), -1)
            y = jnp.concatenate([product(*pair) for pair in zip((x, *others), shares, strict=True)], -1)
        return y + _shift(self, x.shape[-1], y) if self.bias else y


class Conv(nn.Module):
    """Convolve an image with a square kernel, keeping its size or dividing it by `stride`.

    `padding` is the number of zeros before and after each axis; by default half the kernel on either side.
    """

    width: int
    kernel: int = 3
    stride: int = 1
    padding: tuple[int, int] | None = None
    initial: Scheme = fan_average()
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.width)
        kernel = _kernel(self, shape, x)
        y = convolve(x, kernel, stride=self.stride, padding=self.padding)
        return y + _shift(self, self.kernel**2 * x.shape[-1], y) if self.bias else y


class TransposedConv(nn.Module):
    """Double the size: every pixel becomes a square of two by two, by a kernel of its own for each corner."""

    width: int
    initial: Scheme = fan_average()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        kernel = _kernel(self, (2, 2, channels, self.width), x)
        y = jnp.einsum("bhwc,ijco->bhiwjo", x, kernel).reshape(batch, 2 * height, 2 * width, self.width)
        return y + _shift(self, channels, y)


def _kernel(layer, shape, x):
    return gathered(layer.param("kernel", layer.initial.kernel, shape).astype(x.dtype), layer.path)


def _shift(layer, fan, y):
    bias = layer.param("bias", layer.initial.bias(fan), (layer.width,))
    return bias.astype(y.dtype).reshape(*(1,) * (y.ndim - 1), -1)
