"""One step over many devices.

`jit` is given the step for the whole batch and shardings: the batch is split along the mesh, the state is on every
device, and XLA finds the sums. `pmap` maps the step over the devices, each with its share of the batch and the mean of
all gradients; it is for pure data parallelism. Both give the parameters that one device would.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.naming import lookup
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import Step
from diffusion_jax.types import Batch

DATA = "data"


class Parallel(NamedTuple):
    """A step over devices and the ways in and out.

    `put_state` lays a state out on the devices, `put_batch` this host's part of a global batch; `get_state` gives the
    state as it would be on one device, to be saved.
    """

    step: Step
    put_state: Callable[[TrainState], Any]
    put_batch: Callable[[Batch], Any]
    get_state: Callable[[Any], TrainState]


def make_mesh(devices: Any = None) -> Mesh:
    """Arrange the devices, all by default, in one row named "data"."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (DATA,))


def parallelize(make_step: Callable[..., Step], mesh: Mesh, *, mapping: str = "jit") -> Parallel:
    """Make the step run over the mesh; `make_step` takes `average`, the mean over the devices that `pmap` needs."""
    return lookup(MAPPINGS, mapping, "mapping")(make_step, mesh)


def by_jit(make_step: Callable[..., Step], mesh: Mesh) -> Parallel:
    """Compile the step for the whole batch, with the batch split over the mesh."""
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA))
    step = jax.jit(
        make_step(),
        in_shardings=(everywhere, split),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )

    def put_batch(batch):
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, np.asarray(leaf)), batch)

    return Parallel(step, lambda state: _own(state, everywhere), put_batch, lambda state: state)


def by_pmap(make_step: Callable[..., Step], mesh: Mesh) -> Parallel:
    """Map the step over the devices, with means over them."""
    devices = list(mesh.devices.flat)
    local = [device for device in devices if device.process_index == jax.process_index()]

    def average(tree):
        return jax.lax.pmean(tree, DATA)

    step = jax.pmap(make_step(average=average), axis_name=DATA, devices=devices, donate_argnums=0)

    def put_state(state):
        stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(local), *leaf.shape)), state)
        return jax.device_put(stacked, NamedSharding(make_mesh(local), PartitionSpec(DATA)))

    def put_batch(batch):
        def share(leaf):
            leaf = np.asarray(leaf)
            if leaf.shape[0] % len(local):
                raise ValueError(f"a batch of {leaf.shape[0]} cannot be shared by {len(local)} devices evenly.")
            return leaf.reshape(len(local), -1, *leaf.shape[1:])

        return jax.tree.map(share, batch)

    def run(state, batch):
        state, metrics = step(state, batch)
        return state, jax.tree.map(lambda leaf: leaf[0], metrics)

    return Parallel(run, put_state, put_batch, lambda state: jax.tree.map(lambda leaf: leaf[0], state))


def _own(tree, sharding):
    """Copy a tree to the devices: the step gives its buffers away, and they must not be the caller's."""
    return jax.device_put(jax.tree.map(jnp.copy, tree), sharding)


MAPPINGS = {"jit": by_jit, "pmap": by_pmap}
