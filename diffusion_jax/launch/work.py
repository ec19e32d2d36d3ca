"""The real step of training, and the whole loop of sampling, compiled for devices that need not be here."""

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.config import changed
from diffusion_jax.data.blank import blank
from diffusion_jax.devices import BATCH, layout
from diffusion_jax.experiment import Training, at_least, make_training, state_shapes
from diffusion_jax.launch.traffic import Traffic, traffic_of
from diffusion_jax.prompts import hear
from diffusion_jax.sampler import conditions, make_sampler
from diffusion_jax.training.chips import chip_of
from diffusion_jax.training.flops import flops_of
from diffusion_jax.training.parallel import check_batch, make_mesh, parallelize
from diffusion_jax.training.step import make_train_step

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Found(NamedTuple):
    """What each chip needs, holds from call to call, does and moves; if it did not fit, only what it needs is known.

    `there` is the memory that a program can have, or None where nobody knows.
    """

    batch: int
    seconds: float
    needed: float
    there: float | None
    held: float = 0.0
    flops: float = 0.0
    traffic: Traffic | None = None

    @property
    def fits(self) -> bool:
        """Say whether there is as much memory as is needed."""
        return self.traffic is not None and (self.there is None or self.needed <= self.there)


class Work(NamedTuple):
    """What is to be compiled; `build(batch)` traces and compiles it, for multiples of `unit`."""

    name: str
    batch: int
    unit: int
    devices: Sequence[Any]
    build: Callable[[int], Found]


def training_work(config: Any, devices: Sequence[Any]) -> Work:
    """Return the step of training; whatever is wrong with the config is said here."""
    part = config.training
    if part.mapping != "jit":
        raise ValueError(f"config.training.mapping is {part.mapping}; what is planned for is mapping=jit.")
    mesh = make_mesh(devices, sizes=part.mesh)
    unit = check_batch(part, mesh.shape)
    _training(config, part.batch_size)

    def build(batch):
        training = _training(config, batch)
        make_step = partial(make_train_step, training.loss_fn, training.optimizer, training.averages, parts=part.parts)
        parallel = parallelize(make_step, mesh)
        model, alone = training.model, _training(config, 1)
        one = hear(model.prompts, alone.batches[0], model.told)  # shows what a batch is like
        example = jax.tree.map(jnp.asarray, one)
        split = NamedSharding(mesh, PartitionSpec(BATCH))
        shapes = jax.tree.map(lambda leaf: _shape(leaf, split, batch=batch), example)
        state = parallel.alike(state_shapes(config, training))
        return compiled(batch, list(mesh.devices.flat), lambda: parallel.step.trace(state, shapes))

    return Work("training", part.batch_size, unit, devices, build)


def sampling_work(config: Any, devices: Sequence[Any]) -> Work:
    """Return the loop of sampling, as the devices of one host do it; the hosts share the samples."""
    here = [device for device in devices if device.process_index == devices[0].process_index]
    training = _training(config, 1)
    model, info = training.model, training.batches.info
    asked = at_least(config.sampling, "batch_size", 1, under="sampling.")
    batch = max(asked // len(here), 1) * len(here)

    def build(batch):
        draw, place = jax.jit(make_sampler(config, model, info)), layout(batch, here)
        hints = np.zeros((batch, *model.told["hint"].shape), np.float32) if "hint" in model.told else None
        said = config if hints is None else changed(config, {"sampling.captions": ("",), "sampling.label": 0})
        cond = conditions(said, model, np.arange(batch), hints=hints)
        whole = state_shapes(config, training).params, jax.random.key(0)
        params, key = jax.tree.map(lambda leaf: _shape(leaf, place.whole), whole)
        indices, cond = jax.tree.map(lambda leaf: _shape(leaf, place.split), (jnp.arange(batch), cond))

        def trace():
            with jax.sharding.use_abstract_mesh(place.whole.mesh.abstract_mesh):
                return draw.trace(params, key, indices, cond)

        return compiled(batch, here, trace)

    return Work("sampling", batch, len(here), here, build)


def compiled(batch: int, devices: Sequence[Any], trace: Callable[[], Any]) -> Found:
    """Trace a program for some devices, compile it, and look at what came out."""
    begin = time.perf_counter()
    traced = trace()
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = re.findall(r"\b([\d.]+)([KMGT])\b", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or len(sizes) < 2:
            raise
        needed, there = (float(number) * _UNITS[unit] for number, unit in sizes[:2])
        return Found(batch, time.perf_counter() - begin, needed, there)
    seconds, memory = time.perf_counter() - begin, program.memory_analysis()
    held = memory.argument_size_in_bytes
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Found(
        batch,
        seconds,
        held + made + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        memory_of(devices[0]),
        held,
        flops_of(traced.jaxpr) / len(devices),
        traffic_of(program.as_text() or ""),
    )


def memory_of(device: Any) -> float | None:
    """Return the bytes that a program can have on a device: what JAX's allocator may take here, else all of a chip."""
    stats = device.memory_stats() if device in jax.local_devices() else None
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    chip = chip_of(device)
    return None if chip is None else chip.memory


def _training(config, batch) -> Training:
    """Build a config for batches of another size; data that are known by what is expected of them are not read."""
    config = config.copy_and_resolve_references().unlock()
    config.training.update(batch_size=batch, workers=0)
    return make_training(config, source=blank(config.expects) if config.expects else None)


def _shape(leaf, sharding, *, batch=None):
    """Return the shape of an array that lies as `sharding` says, with `batch` for its first axis."""
    shape = leaf.shape if batch is None else (batch, *leaf.shape[1:])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
