"""Where arrays lie: a batch over devices, in training and outside of it."""

import math
import re
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.types import Array

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")  # of the mesh of training
BATCH = (DATA, FSDP)  # the axes that a batch is split over

# The kernels that `tensor` splits, by the end of their path: the columns of one product, then the rows of the next, so
# that there is one sum for both. The names are those of every network of `nets/`.
COLUMNS = r"(^|/)(qkv|q|kv|dense_1|conv_1)/kernel$"
ROWS = r"((attention|to_text)/out|(^|/)dense_2|(^|/)conv_2)/kernel$"


class Layout(NamedTuple):
    """Where a batch lies, and what is `whole` on each of its devices."""

    split: NamedSharding
    whole: NamedSharding


def layout(count: int) -> Layout:
    """Lay batches of `count` out over as many of this process's devices as divide them evenly."""
    devices = jax.local_devices()
    mesh = Mesh(np.asarray(devices[: math.gcd(count, len(devices))]), (DATA,))
    return Layout(NamedSharding(mesh, PartitionSpec(DATA)), NamedSharding(mesh, PartitionSpec()))


def along_batch(x: Array) -> Array:
    """Say that activations (batch, ...) are split as the batch is; outside of a mesh of training this is nothing.

    Without it the partitioner may follow the parameters instead, and move activations where it should gather kernels.
    """
    if _mesh() is None:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return lax.with_sharding_constraint(x, PartitionSpec(BATCH, *free))


def gathered(kernel: Array, path: tuple[str, ...]) -> Array:
    """Say that a layer's kernel is whole where it is used, but for what `tensor` splits.

    The partitioner then gathers kernels, in the dtype of the arithmetic, and leaves activations where they are.
    """
    mesh = _mesh()
    if mesh is None:
        return kernel
    axes = split_by_tensor("/".join((*path, "kernel")), kernel.shape, mesh.shape[TENSOR])
    return lax.with_sharding_constraint(kernel, PartitionSpec(*axes))


def split_by_tensor(name: str, shape: tuple[int, ...], size: int) -> list[str | None]:
    """Return the axes of a parameter, with "tensor" for that which so many devices split."""
    axes: list[str | None] = [None] * len(shape)
    for pattern, axis in ((COLUMNS, -1), (ROWS, -2)):
        if size > 1 and re.search(pattern, name) and shape[axis] % size == 0:
            axes[axis] = TENSOR
    return axes


def _mesh():
    """Return the mesh of training, if a step is being traced for one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or not set(AXES) <= set(mesh.axis_names) else mesh
