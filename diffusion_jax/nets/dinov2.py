"""DINOv2 (Oquab et al. 2024): a vision transformer trained without labels, whose class token describes an image.

Its positions are learned for a square of `grid` by `grid` patches, and are interpolated to other numbers of patches.
How is part of the features: the original code moves by grid / (patches + 0.1) a patch, and its port in transformers by
grid / patches. The networks with registers (Darcet et al. 2024), tokens of no place behind the class token, have a
filter against aliasing.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from diffusion_jax.naming import lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.cubic import covered, four
from diffusion_jax.nets.initial import normal
from diffusion_jax.nets.norm import LayerNorm
from diffusion_jax.nets.vit import Patches, Shape, blocks, checked, first
from diffusion_jax.types import Array


def dinov2(
    *,
    grid: int = 37,
    patch: int = 14,
    width: int = 1024,
    depth: int = 24,
    heads: int = 16,
    hidden: int = 4096,
    feed: str = "gelu",
    registers: int = 0,
    positions: str = "original",
    epsilon: float = 1e-6,
    dtype: str = "float32",
) -> nn.Module:
    """Build the network: images (B, H, W, 3), normalised, sides multiples of `patch`, to class tokens (B, width)."""
    checks.whole("dinov2", 1, grid=grid, patch=patch)
    checks.whole("dinov2", 0, registers=registers)
    shape = checked("dinov2", Shape(width, depth, heads, hidden, feed, epsilon, scale="learned"))
    resized = lookup(POSITIONS, positions, "positions of dinov2")
    return DinoV2(grid, patch, shape, registers, resized, checks.dtype_of("dinov2", dtype))


class DinoV2(nn.Module):
    """The network of `dinov2`."""

    grid: int
    patch: int
    shape: Shape
    registers: int
    resized: Any
    dtype: Any

    def __call__(self, x: Array) -> Array:
        return self.tokens(x)[:, 0]

    @nn.compact
    def tokens(self, x: Array) -> Array:
        """Return all tokens after the last norm: the class token, registers, patches in reading order."""
        checks.images("dinov2", x, 3, self.patch)
        width, patches = self.shape.width, (x.shape[1] // self.patch, x.shape[2] // self.patch)
        h = Patches(width, self.patch, bias=True, name="patches")(x.astype(self.dtype))
        h = first(self.param("class", normal(0.02), (width,)), h)
        positions = self.param("positions", normal(0.02), (1 + self.grid**2, width))
        h = h + self._interpolated(positions.astype(jnp.float32), patches).astype(h.dtype)[None]
        if self.registers:
            registers = self.param("registers", normal(0.02), (self.registers, width))
            h = jnp.concatenate([h[:, :1], first(registers, h[:, 1:])], 1)
        h, _ = blocks(self.shape, h)
        return LayerNorm(self.shape.epsilon, name="norm")(h).astype(jnp.float32)

    def _interpolated(self, positions, patches):
        if patches == (self.grid, self.grid):
            return positions
        rows, columns = (jnp.asarray(self.resized(self.grid, count), jnp.float32) for count in patches)
        square = positions[1:].reshape(self.grid, self.grid, -1)
        moved = jnp.einsum("ih,hwc,jw->ijc", rows, square, columns, precision=lax.Precision.HIGHEST)
        return jnp.concatenate([positions[:1], moved.reshape(-1, positions.shape[-1])])


def original(grid: int, patches: int) -> np.ndarray:
    """Interpolate between four, in steps of the original code, which were to guard against rounding."""
    return four(grid, patches, step=grid / (patches + 0.1))


POSITIONS = {"original": original, "plain": four, "antialiased": covered}
