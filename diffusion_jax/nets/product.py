"""The product of an array's last axis with a matrix, in the form of whose gradient a CPU makes the most.

    y[..., o] = sum_i x[..., i] K[i, o],        dL/dK[i, o] = sum_... x[..., i] dL/dy[..., o]                 (1)

On CPUs the sum over several axes makes XLA copy dL/dy into another order, which takes as long as the product itself;
over one axis it does not. Elsewhere the axes are left as they are, so that each keeps its place on the devices.
"""

import jax.numpy as jnp

from diffusion_jax.devices import platform
from diffusion_jax.types import Array


def product(x: Array, kernel: Array) -> Array:
    """Evaluate Eq. (1) for x (..., in) and a kernel (in, out)."""
    return flat(x, kernel) if platform() == "cpu" else jnp.tensordot(x, kernel, 1)


def flat(x: Array, kernel: Array) -> Array:
    """Evaluate Eq. (1) with all axes but the last made one."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
