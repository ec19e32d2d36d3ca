"""Where arrays lie: a batch over devices, in training and outside of it."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import linear_call
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.types import Array

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")  # of the mesh of training
BATCH = (DATA, FSDP)  # the axes that a batch is split over

# The kernels that `tensor` splits, by the end of their path: the columns of one product, then the rows of the next, so
# that there is one sum for both. The names are those of every network of `nets/`.
COLUMNS = r"(^|/)(qkv|q|kv|dense_1|conv_1)/kernel$"
ROWS = r"((attention|to_text)/out|(^|/)dense_2|(^|/)conv_2)/kernel$"

LEAST = 2**12  # numbers; a smaller kernel is whole on every device, since to gather it takes longer than to keep it
GATHERED = "gathered"  # what a gathered kernel is called where it is said what to keep for the gradient


class Layout(NamedTuple):
    """Where a batch lies, and what is `whole` on each of its devices."""

    split: NamedSharding
    whole: NamedSharding


def layout(count: int, devices: Sequence[Any] | None = None) -> Layout:
    """Lay batches of `count` out over as many devices, by default this process's, as divide them evenly."""
    devices = jax.local_devices() if devices is None else devices
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
    """Say that a layer's kernel is whole where it is used, but for what `tensor` splits, and its gradient split again.

    The partitioner then gathers kernels, in the dtype of the arithmetic, leaves activations where they are, and sends
    each device its share of a gradient's sum alone.
    """
    mesh = _mesh()
    if mesh is None:
        return kernel
    name = "/".join((*path, "kernel"))
    used = PartitionSpec(*split_by_tensor(name, kernel.shape, mesh.shape[TENSOR]))
    kept = split_of(name, kernel.shape, mesh.shape)
    kernel = linear_call(
        lambda _, kernel: lax.with_sharding_constraint(kernel, used),
        lambda _, slope: lax.with_sharding_constraint(slope, kept),
        (),
        kernel,
    )
    return checkpoint_name(kernel, GATHERED)


def gathers() -> bool:
    """Say whether kernels are gathered in the step being traced."""
    mesh = _mesh()
    return mesh is not None and mesh.shape[FSDP] > 1


def split_of(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Return which axes of a parameter are split over which axes of a mesh of these sizes."""
    axes = split_by_tensor(name, shape, sizes[TENSOR])
    if sizes[FSDP] > 1 and name.endswith("kernel") and math.prod(shape) >= LEAST:
        # Of a kernel, its inputs or outputs, and never the layers of a scan or the window of a convolution.
        free = [axis for axis in (-1, -2) if axes[axis] is None and shape[axis] % sizes[FSDP] == 0]
        if free:
            axes[max(free, key=lambda axis: shape[axis])] = FSDP
    return PartitionSpec(*axes)


def split_by_tensor(name: str, shape: tuple[int, ...], size: int) -> list[str | None]:
    """Return the axes of a parameter, with "tensor" for that which so many devices split."""
    axes: list[str | None] = [None] * len(shape)
    for pattern, axis in ((COLUMNS, -1), (ROWS, -2)):
        if size > 1 and re.search(pattern, name) and shape[axis] % size == 0:
            axes[axis] = TENSOR
    return axes


def platform() -> str:
    """Return what the function being traced will run on: "cpu", "gpu" or "tpu", which need not be here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _mesh():
    """Return the mesh of training, if a step is being traced for one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or not set(AXES) <= set(mesh.axis_names) else mesh
