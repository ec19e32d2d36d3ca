"""One step over many devices.

The devices form a mesh with three named axes:

    data      each has its share of the batch
    fsdp      each has its share of the batch, and of every kernel, its averages and its moments; kernels are gathered
              when they are needed (Rajbhandari et al. 2020)
    tensor    each computes its share of the columns of some products

`jit` is given the step for the whole batch and where everything lies, and XLA finds the communication. `pmap` maps the
step over the devices, each with its share of the batch and the mean of all gradients; it is for data parallelism alone.
All give the parameters that one device would.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.devices import AXES, BATCH, DATA, FSDP, TENSOR, split_of
from diffusion_jax.naming import lookup, suggestion
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import Step
from diffusion_jax.types import Batch


class Parallel(NamedTuple):
    """A step over devices and the ways in and out.

    `put_state` lays a state out on the devices, `put_batch` this host's part of a global batch; `get_state` gives the
    state as it is saved; `whole` gives all of a part of that state to every host; `alike` says of the shapes of a
    state where they lie when it is saved.
    """

    step: Step
    put_state: Callable[[TrainState], Any]
    put_batch: Callable[[Batch], Any]
    get_state: Callable[[Any], TrainState]
    whole: Callable[[Any], Any]
    alike: Callable[[Any], Any]


def make_mesh(devices: Any = None, *, sizes: Mapping[str, int] | None = None) -> Mesh:
    """Arrange the devices, all by default, along the axes; one size may be -1, which takes what is left."""
    devices = np.asarray(jax.devices() if devices is None else devices).ravel()
    local = sum(device.process_index == devices[0].process_index for device in devices)
    shape = mesh_shape(devices.size, local, sizes=sizes)
    return Mesh(devices.reshape(tuple(shape.values())), AXES)


def mesh_shape(count: int, local: int, *, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the axes and sizes of a mesh of so many devices, `local` of them in a process; see `make_mesh`."""
    asked = {DATA: -1, FSDP: 1, TENSOR: 1, **dict(sizes or {})}
    for name in asked:
        if name not in AXES:
            raise ValueError(f"the mesh has no axis '{name}'.{suggestion(name, AXES)} It has: {', '.join(AXES)}.")
    shown = ", ".join(f"{name}={asked[name]}" for name in AXES)
    fixed = math.prod(size for size in asked.values() if size != -1)
    open_axes = [name for name in AXES if asked[name] == -1]
    if any(size < 1 and size != -1 for size in asked.values()) or len(open_axes) > 1:
        raise ValueError(f"the mesh is {shown}; sizes are 1 or more, and one of them may be -1.")
    if count % fixed or (not open_axes and fixed != count):
        raise ValueError(
            f"the mesh is {shown}, which {count} devices do not fill: their product must be {count}, or divide it "
            "where one size is -1."
        )
    shape = {name: count // fixed if asked[name] == -1 else asked[name] for name in AXES}
    if shape[TENSOR] > 1 and count > local and local % shape[TENSOR]:
        raise ValueError(f"the mesh is {shown}; tensor must divide the {local} devices of a host.")
    return shape


def check_batch(part: Any, shape: Mapping[str, int]) -> int:
    """Return what the batches of a config's `training` must be multiples of on such a mesh, or refuse its batch."""
    shares = shape[DATA] * shape[FSDP]
    if part.parts < 1:
        raise ValueError(f"config.training.parts is {part.parts}; it must be 1 or more.")
    unit = shares * part.parts
    if part.batch_size < 1 or part.batch_size % unit:
        raise ValueError(
            f"config.training.batch_size is {part.batch_size}; {shares} devices and {part.parts} parts must share "
            f"it evenly, so make it a multiple of {unit}."
        )
    return unit


def parallelize(make_step: Callable[..., Step], mesh: Mesh, *, mapping: str = "jit") -> Parallel:
    """Make the step run over the mesh; `make_step` takes `average`, the mean over the devices that `pmap` needs."""
    return lookup(MAPPINGS, mapping, "mapping")(make_step, mesh)


def by_jit(make_step: Callable[..., Step], mesh: Mesh) -> Parallel:
    """Compile the step for the whole batch, with the batch and the state split over the mesh."""
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(BATCH))
    step = make_step()

    def run(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            state, metrics = step(state, batch)
        constrain = jax.lax.with_sharding_constraint
        return constrain(state, layout_of(state, mesh)), constrain(metrics, everywhere)

    def put_batch(batch):
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, np.asarray(leaf)), batch)

    def put_state(state):
        return _own(state, layout_of(state, mesh))

    return Parallel(
        jax.jit(run, donate_argnums=0),
        put_state,
        put_batch,
        lambda state: state,
        jax.jit(lambda tree: tree, out_shardings=everywhere),
        lambda shapes: _placed(shapes, layout_of(shapes, mesh)),
    )


def layout_of(state: Any, mesh: Mesh) -> Any:
    """Say where each array of a state, or each of its shapes, lies on the mesh.

    An optimizer's state and averages have the names of the parameters at the end of their paths, and lie as they do.
    """

    def place(path, leaf):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return NamedSharding(mesh, split_of("/".join(map(str, names)), leaf.shape, mesh.shape))

    return jax.tree.map_with_path(place, state)


def by_pmap(make_step: Callable[..., Step], mesh: Mesh) -> Parallel:
    """Map the step over the devices, with means over them."""
    if mesh.shape[DATA] != mesh.size:
        raise ValueError("pmap splits the batch alone; with mesh.fsdp or mesh.tensor above 1 take mapping=jit.")
    devices = list(mesh.devices.flat)
    local = [device for device in devices if device.process_index == jax.process_index()]

    def average(tree):
        return jax.lax.pmean(tree, DATA)

    step = jax.pmap(make_step(average=average), axis_name=DATA, devices=devices, donate_argnums=0)

    def put_state(state):
        stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(local), *leaf.shape)), state)
        return jax.device_put(stacked, NamedSharding(Mesh(np.asarray(local), (DATA,)), PartitionSpec(DATA)))

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

    one = NamedSharding(Mesh(np.asarray(local[:1]), (DATA,)), PartitionSpec())
    return Parallel(
        run,
        put_state,
        put_batch,
        lambda state: jax.tree.map(lambda leaf: leaf[0], state),
        lambda tree: tree,
        lambda shapes: _placed(shapes, jax.tree.map(lambda _: one, shapes)),
    )


def _placed(shapes, shardings):
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def _own(tree, sharding):
    """Copy a tree to the devices: the step gives its buffers away, and they must not be the caller's."""
    if jax.process_count() == 1:
        return jax.device_put(jax.tree.map(jnp.copy, tree), sharding)
    return jax.tree.map(_share, tree, sharding)


def _share(leaf, sharding):
    """Put this process's part of an array, which every process has as a whole, on its devices."""
    if not leaf.is_fully_addressable:
        return leaf  # it lies there already, read from a checkpoint
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _share(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


MAPPINGS = {"jit": by_jit, "pmap": by_pmap}
