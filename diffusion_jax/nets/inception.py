"""The network that FID is defined by: Inception-v3 as it was trained in 2015 (Szegedy et al. 2016).

It is not the network of that name in today's model collections: its average pools divide by the pixels that they cover,
without the padding; its last block takes a maximum where the others take an average; it has 1008 classes, and scores
leave out their bias. With other weights or pools the numbers are others, not less precise.

A convolution and the normalisation after it, with the statistics of training, are one convolution with a bias:

    g (K x - m) / sqrt(v + e) + b = (s K) x + (b - s m),        s = g / sqrt(v + e),        e = 0.001           (1)

An average over windows and a 1 x 1 convolution commute, so the average is taken of the convolution's output, which has
fewer channels.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion_jax.devices import platform
from diffusion_jax.types import Array, Params

SIZE = 299
EPSILON = 1e-3


class Conv(NamedTuple):
    """A convolution, its normalisation and relu; it keeps the size of its input or, with "VALID", pads nothing."""

    name: str
    width: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Averaged(NamedTuple):
    """An average over 3 x 3 pixels, of those that exist, then a 1 x 1 convolution, normalisation and relu."""

    name: str
    width: int
    window: tuple[int, int] = (1, 1)


def inception(params: Params, x: Array) -> dict[str, Array]:
    """Return the features of images (N, 299, 299, 3), scaled to about [-1, 1], in float32; see `widths`.

    It computes in the dtype that `fold` gave the parameters.
    """
    if x.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"inception: images are {x.shape}; they must be (N, {SIZE}, {SIZE}, 3), as a resizing gives.")
    kinds = {}
    x = x.astype(params["fc"].dtype)
    for kind, plan in STAGES:
        x = _run(params, plan, x)
        if kind == "spatial":
            kinds[kind] = x[..., :7].reshape(len(x), -1).astype(jnp.float32)
        else:
            kinds[kind] = x.astype(jnp.float32).mean((1, 2))
    weights = params["fc"].astype(jnp.float32)
    return {**kinds, "logits": jnp.dot(kinds["pool"], weights, precision=lax.Precision.HIGHEST)}


def widths() -> dict[str, int]:
    """Say how many numbers each kind of feature has.

    `spatial` is what sFID compares (Nash et al. 2021): the first 7 channels of "mixed_6/conv" of the TensorFlow graph,
    which is the first branch of our Mixed_6d. `pool_64`, `pool_192` and `pool_768` are averages of earlier layers.
    """
    return {"pool": 2048, "spatial": 7 * 17 * 17, "logits": 1008, "pool_64": 64, "pool_192": 192, "pool_768": 768}


def fold(weights: Mapping[str, Any], dtype: Any = jnp.float32) -> Params:
    """Turn weights with the names of the PyTorch port into parameters, Eq. (1)."""
    _check(weights)
    params: dict[str, Any] = {"fc": jnp.asarray(np.asarray(weights["fc.weight"], np.float32).T, dtype)}
    for conv, _ in _convolutions():
        kernel, gain, bias, mean, variance = (
            np.asarray(weights[f"{conv.name}.{part}"], np.float64)
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = gain / np.sqrt(variance + EPSILON)
        params[conv.name] = {
            "kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0) * scale, dtype),
            "bias": jnp.asarray(bias - scale * mean, dtype),
        }
    return params


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Draw weights from the seed and each one's name, in float32: features that need no file, and mean little."""
    return {name: _draw(name, shape, seed) for name, shape in shapes().items()}


def shapes() -> dict[str, tuple[int, ...]]:
    """Map the names of the PyTorch port's weights to their shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for conv, channels in _convolutions():
        found[f"{conv.name}.conv.weight"] = (conv.width, channels, *conv.window)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{conv.name}.bn.{part}"] = (conv.width,)
    return {**found, "fc.weight": (1008, 2048), "fc.bias": (1008,)}


# A plan is a Conv, an Averaged, a pool by name, a tuple of plans one after the other or a list of plans side by side.


def _a(block, pool):
    return [
        Conv(f"{block}.branch1x1", 64),
        (Conv(f"{block}.branch5x5_1", 48), Conv(f"{block}.branch5x5_2", 64, (5, 5))),
        (
            Conv(f"{block}.branch3x3dbl_1", 64),
            Conv(f"{block}.branch3x3dbl_2", 96, (3, 3)),
            Conv(f"{block}.branch3x3dbl_3", 96, (3, 3)),
        ),
        Averaged(f"{block}.branch_pool", pool),
    ]


def _b(block):
    return [
        Conv(f"{block}.branch3x3", 384, (3, 3), 2, "VALID"),
        (
            Conv(f"{block}.branch3x3dbl_1", 64),
            Conv(f"{block}.branch3x3dbl_2", 96, (3, 3)),
            Conv(f"{block}.branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
        ),
        "halve",
    ]


def _c(block, width):
    tall, broad = (7, 1), (1, 7)
    return [
        Conv(f"{block}.branch1x1", 192),
        (
            Conv(f"{block}.branch7x7_1", width),
            Conv(f"{block}.branch7x7_2", width, broad),
            Conv(f"{block}.branch7x7_3", 192, tall),
        ),
        (
            Conv(f"{block}.branch7x7dbl_1", width),
            Conv(f"{block}.branch7x7dbl_2", width, tall),
            Conv(f"{block}.branch7x7dbl_3", width, broad),
            Conv(f"{block}.branch7x7dbl_4", width, tall),
            Conv(f"{block}.branch7x7dbl_5", 192, broad),
        ),
        Averaged(f"{block}.branch_pool", 192),
    ]


def _d(block):
    return [
        (Conv(f"{block}.branch3x3_1", 192), Conv(f"{block}.branch3x3_2", 320, (3, 3), 2, "VALID")),
        (
            Conv(f"{block}.branch7x7x3_1", 192),
            Conv(f"{block}.branch7x7x3_2", 192, (1, 7)),
            Conv(f"{block}.branch7x7x3_3", 192, (7, 1)),
            Conv(f"{block}.branch7x7x3_4", 192, (3, 3), 2, "VALID"),
        ),
        "halve",
    ]


def _e(block, pool):
    return [
        Conv(f"{block}.branch1x1", 320),
        (Conv(f"{block}.branch3x3_1", 384), _cross(f"{block}.branch3x3_2")),
        (
            Conv(f"{block}.branch3x3dbl_1", 448),
            Conv(f"{block}.branch3x3dbl_2", 384, (3, 3)),
            _cross(f"{block}.branch3x3dbl_3"),
        ),
        pool,
    ]


def _cross(name):
    return [Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))]


STAGES = (
    (
        "pool_64",
        (
            Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
            Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
            Conv("Conv2d_2b_3x3", 64, (3, 3)),
            "halve",
        ),
    ),
    ("pool_192", (Conv("Conv2d_3b_1x1", 80), Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"), "halve")),
    (
        "spatial",
        (
            _a("Mixed_5b", 32),
            _a("Mixed_5c", 64),
            _a("Mixed_5d", 64),
            _b("Mixed_6a"),
            _c("Mixed_6b", 128),
            _c("Mixed_6c", 160),
            _c("Mixed_6d", 160),
        ),
    ),
    ("pool_768", _c("Mixed_6e", 192)),
    (
        "pool",
        (
            _d("Mixed_7a"),
            _e("Mixed_7b", Averaged("Mixed_7b.branch_pool", 192)),
            _e("Mixed_7c", ("densest", Conv("Mixed_7c.branch_pool", 192))),
        ),
    ),
)


def _run(params, plan, x):
    """Evaluate a plan."""
    if isinstance(plan, Conv | Averaged):
        y = _convolve(plan, params[plan.name]["kernel"], x)
        y = _average(y) if isinstance(plan, Averaged) else y
        return jax.nn.relu(y + params[plan.name]["bias"][None, None, None])
    if plan == "halve":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    if plan == "densest":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    if isinstance(plan, list):
        return jnp.concatenate([_run(params, part, x) for part in plan], -1)
    for part in plan:
        x = _run(params, part, x)
    return x


def _convolve(conv, kernel, x):
    highest = lax.Precision.HIGHEST  # accelerators would round float32 to fewer digits
    if conv.window == (1, 1):
        return jnp.tensordot(x, kernel[0, 0], 1, precision=highest)
    padding, keep = conv.padding, slice(None)
    if padding == "VALID" and platform() == "cpu":
        # XLA has a way for padded convolutions that is four times as fast here; what the zeros touch is cut off.
        padding, keep = [(0, conv.stride)] * 2, slice((x.shape[1] - conv.window[0]) // conv.stride + 1)
    y = lax.conv_general_dilated(
        x, kernel, (conv.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=highest
    )
    return y[:, keep, keep]


def _average(x):
    def total(x):
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _convolutions():
    """List every convolution with the number of channels that it sees, in the order of the PyTorch port."""

    def listed(plan, channels):
        if isinstance(plan, Conv | Averaged):
            return [(plan, channels)], plan.width
        if isinstance(plan, str):
            return [], channels
        found, width = [], 0
        for part in plan:
            inner, out = listed(part, channels)
            found += inner
            if isinstance(plan, list):
                width += out
            else:
                channels = width = out
        return found, width

    return listed(tuple(plan for _, plan in STAGES), 3)[0]


def _check(weights):
    for name, shape in shapes().items():
        if name not in weights and name != "fc.bias":
            raise ValueError(
                f"inception: the weights have no '{name}'; they must be those of the FID Inception under the names of "
                "the PyTorch port (pt_inception-2015-12-05), not of another Inception-v3."
            )
        if name in weights and np.shape(weights[name]) != shape:
            raise ValueError(f"inception: '{name}' is {np.shape(weights[name])} where the FID Inception has {shape}.")


def _draw(name, shape, seed):
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    if name.endswith(("bn.weight", "running_var")):
        numbers = generator.uniform(0.5, 1.5, shape)
    elif name.endswith("conv.weight"):
        numbers = generator.randn(*shape) * np.sqrt(2.0 / math.prod(shape[1:]))
    else:
        numbers = (0.03 if name == "fc.weight" else 0.1) * generator.randn(*shape)
    return numbers.astype(np.float32)
