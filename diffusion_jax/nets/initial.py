"""How parameters begin: a law for each, and all of them drawn at once.

A kernel of shape (..., in, out) has fan_in = (window) in and fan_out = (window) out. A law of gain g has the variance
g / fan, where fan is fan_in or the mean of the two.

Compiling hundreds of draws takes a network longer than its first step. `initialize` therefore asks each parameter for
its law instead of its numbers, while only shapes are traced, and draws the numbers with numpy: the bits of a parameter
depend on the seed and on the parameter's own path, so not on the device, their number, or the other parameters.
"""

import contextvars
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from diffusion_jax.types import Key, Params

# What a parameter begins at, by its path and what it is like, or None where it is drawn.
Given = Callable[[str, Any], Any]


def initialize(module: nn.Module, key: Key, example: tuple, *, given: Given | None = None) -> Params:
    """Draw a network's parameters; `example` is (x, t) or (x, t, cond), of which only shapes and dtypes matter.

    Of parameters that are `given`, by path and shape, nothing is drawn.
    """
    recorded = _recorded(module, example)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    with jax.ensure_compile_time_eval():  # also where only the shapes of a state are traced
        words = np.asarray(jax.random.key_data(key) if typed else key).ravel().tolist()

    def begin(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        known = None if given is None else given(name, leaf.value if _is_recorded(leaf) else leaf)
        if known is not None:
            return known
        return _draw(leaf, [*words, zlib.crc32(name.encode())]) if _is_recorded(leaf) else leaf

    if not all(map(_is_recorded, jax.tree.leaves(recorded, is_leaf=_is_recorded))):
        recorded = jax.jit(module.init)(key, *example)["params"]  # other people's layers draw for themselves
    return jax.tree.map_with_path(begin, recorded, is_leaf=_is_recorded)


def shapes_of(module: nn.Module, example: tuple) -> Params:
    """Return the shapes of a network's parameters, which are not drawn; `example` is that of `initialize`."""
    recorded = _recorded(module, example)  # which takes two thirds of the time of tracing draws
    return jax.tree.map(lambda leaf: leaf.value if _is_recorded(leaf) else leaf, recorded, is_leaf=_is_recorded)


class Law(NamedTuple):
    """A distribution of parameters; called as an initialiser of flax, it draws them with JAX."""

    shape: str  # "constant", "uniform" or "normal"
    size: float  # the value, the bound or the standard deviation; or, given a fan, the gain
    fan: str = ""  # "", "in" or "average"

    def spread(self, shape: tuple[int, ...]) -> float:
        """Return the value, the bound or the standard deviation of a parameter of this shape."""
        if not self.fan:
            return self.size
        window = math.prod(shape[:-2])
        fan_in, fan_out = window * shape[-2], window * shape[-1]
        std = math.sqrt(self.size / {"in": fan_in, "average": (fan_in + fan_out) / 2}[self.fan])
        return std * math.sqrt(3) if self.shape == "uniform" else std

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        if _RECORDING.get():
            return _Recorded(jnp.zeros(shape, dtype), self, tuple(shape))
        spread = self.spread(shape)
        if self.shape == "constant":
            return jnp.full(shape, spread, dtype)
        if self.shape == "uniform":
            return jax.random.uniform(key, shape, dtype, -spread, spread)
        return spread * jax.random.normal(key, shape, dtype)


class Scheme(NamedTuple):
    """How a layer begins: the law of its kernel, and that of its bias, which may depend on fan_in."""

    kernel: Law
    bias: Callable[[int], Law]


def fan_average() -> Scheme:
    """Uniform, variance 1 / mean fan, biases 0 (Glorot & Bengio 2010): DDPM, NCSN++ and DiT."""
    return Scheme(Law("uniform", 1.0, "average"), _no_bias)


def fan_in() -> Scheme:
    """Uniform within 1 / sqrt(fan_in), biases too, as layers of PyTorch begin: ADM and latent diffusion."""
    return Scheme(Law("uniform", 1 / 3, "in"), lambda fan: Law("uniform", 1 / math.sqrt(fan)))


def he() -> Scheme:
    """Normal, variance 2 / fan_in, biases 0 (He et al. 2015): the U-Net of 2015."""
    return Scheme(Law("normal", 2.0, "in"), _no_bias)


def normal(std: float) -> Law:
    """Return the law N(0, std^2)."""
    return Law("normal", std)


def _no_bias(fan):
    return ZEROS


ZEROS, ONES = Law("constant", 0.0), Law("constant", 1.0)
ZERO = Scheme(ZEROS, _no_bias)  # of a layer whose output starts at nothing

SCHEMES = {"fan_average": fan_average, "fan_in": fan_in, "he": he}

_RECORDING = contextvars.ContextVar("recording", default=False)


def _recorded(module, example):
    """Return the parameters' shapes with their laws, but for layers of other people's."""
    token = _RECORDING.set(True)
    try:
        key = jax.eval_shape(lambda: jax.random.key(0))  # a real one would be compiled for a GPU
        # A function of its own, so that no trace of `init` without laws stands for it, and it for none
        return jax.eval_shape(lambda *inputs: module.init(*inputs), key, *example)["params"]
    finally:
        _RECORDING.reset(token)


def _is_recorded(leaf):
    return isinstance(leaf, _Recorded)


@struct.dataclass
class _Recorded(nn.meta.AxisMetadata):
    """A traced parameter together with its law and the shape the law is for: a scan adds axes to the value alone."""

    value: Any
    law: Law = struct.field(pytree_node=False)
    shape: tuple[int, ...] = struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return _Recorded(val, self.law, self.shape)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


def _draw(recorded, seed):
    """Draw a parameter; every entry is independent, so a stack of layers is drawn as one."""
    value, law, spread = recorded.value, recorded.law, recorded.law.spread(recorded.shape)
    if law.shape == "constant":
        return jnp.array(np.full(value.shape, spread, value.dtype))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    if law.shape == "uniform":
        numbers = generator.random(value.shape, np.float32) * np.float32(2) - np.float32(1)
    else:
        numbers = generator.standard_normal(value.shape, np.float32)
    numbers *= np.float32(spread)
    return jnp.array(numbers.astype(value.dtype, copy=False))
