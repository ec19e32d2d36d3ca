"""The discriminator of patches (Isola et al. 2017), by which autoencoders of latent diffusion are trained.

    act(conv(x)),   then `depth` times   act(norm(conv(h))),   then   conv(h)                                  (1)

All kernels are 4 by 4; all but the last two convolutions halve the size. Every number of the result judges one patch of
the image, of 70 by 70 pixels with a depth of 3, and knows nothing of the rest. Norm "batch" takes its statistics from
the batch at hand: a discriminator is never used outside of training, so there are no others.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.naming import lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.initial import ONES, ZEROS, Scheme, normal
from diffusion_jax.nets.linear import Conv
from diffusion_jax.nets.norm import GroupNorm, NoNorm, group_norm
from diffusion_jax.types import Array


def discriminator(
    *, channels: int = 3, width: int = 64, depth: int = 3, norm: str = "batch", dtype: str = "float32"
) -> "Discriminator":
    """Build a discriminator of images (B, H, W, channels): logits (B, h, w, 1) in float32, large for real patches."""
    checks.whole("discriminator", 1, channels=channels, width=width, depth=depth)
    lookup(PATCH_NORMS, norm, "norm of discriminator")
    return Discriminator(channels, width, depth, norm, checks.dtype_of("discriminator", dtype))


class Discriminator(nn.Module):
    """The network of `discriminator`, Eq. (1)."""

    channels: int
    width: int
    depth: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        checks.images("discriminator", x, self.channels, 1)
        least = 3 * 2**self.depth
        if min(x.shape[1:3]) < least:
            raise ValueError(
                f"discriminator: x is {x.shape[1]} by {x.shape[2]}; a depth of {self.depth} needs {least} by {least}. "
                "Take a smaller depth."
            )
        h = _leaky(self.conv(self.width, 2, "first")(x.astype(self.dtype)))
        for layer in range(1, self.depth + 1):
            width = self.width * 2 ** min(layer, 3)
            conv = self.conv(width, 1 if layer == self.depth else 2, f"conv_{layer}")
            h = _leaky(PATCH_NORMS[self.norm](name=f"norm_{layer}")(conv(h)))
        return self.conv(1, 1, "last")(h).astype(jnp.float32)

    def conv(self, width, stride, name):
        """Make a convolution as all of them are."""
        initial = Scheme(normal(0.02), lambda fan: ZEROS)
        return Conv(width, kernel=4, stride=stride, padding=(1, 1), initial=initial, name=name)


class BatchNorm(nn.Module):
    """Normalise every channel over the batch at hand, and scale and shift it."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", ONES, (channels,))[None]
        shift = self.param("bias", ZEROS, (channels,))[None]
        joined = x.reshape(1, -1, channels)  # as one example, with a group for each channel
        return group_norm(joined, scale, shift, groups=channels, epsilon=self.epsilon).reshape(x.shape)


def _leaky(h):
    return nn.leaky_relu(h, 0.2)


PATCH_NORMS = {"batch": BatchNorm, "group": GroupNorm, "none": NoNorm}
