"""Adapters of low rank: what training adds to kernels, small enough to keep one for every purpose (Hu et al. 2022).

    W' = W + s A (g * B),        A (in, r) drawn,   B (r, out) zero at first,   g = alpha / r                 (1)

A convolution's is a convolution of the same window down to r channels, and one of 1 by 1 up (LoCon; Yeh et al. 2024):

    W'[k, l] = W[k, l] + s A[k, l] (g * B)                                                                    (2)

Several maps that lie side by side in one kernel, as queries, keys and values do, may have ranks of their own. Then g is
a matrix (r, parts), whose column p is for the share p of B's columns: where it is zero, a rank does not reach a share,
and training does not lead it there. Layers stacked by a scan stay stacked: A, B and g have the axis of depth first.

An adapter is a pair of plain trees over paths of kernels. Training moves the first, `factors`, and nothing else:

    apply = with_adapter(apply_of(network), adapter.gains)
    apply({"network": params, "lora": adapter.factors}, x, t, cond)
"""

import fnmatch
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.nets import checks
from diffusion_jax.types import Apply, Array, Key, Params


class Adapter(NamedTuple):
    """`factors` {path: {"a": (..., in, r), "b": (..., r, out)}}, and `gains` {path: (..., r, parts)}, Eqs. (1) and (2).

    A path is that of a kernel in the parameters, joined by slashes.
    """

    factors: dict[str, dict[str, Array]]
    gains: dict[str, Array]


def start(
    params: Params, key: Key, *, targets: Sequence[str], rank: int | Mapping[str, int], alpha: Any = None
) -> Adapter:
    """Begin adapters of the layers whose paths fit `targets`, patterns such as "*attention/qkv", as in `fnmatch`.

    `rank` and `alpha`, by default the rank, may differ by layer: {pattern: number}, where the first that fits holds. A
    is uniform within 1 / sqrt(fan_in). Of `params` only shapes matter.
    """
    factors, gains = {}, {}
    for path, kernel in chosen(params, targets).items():
        r = _of(rank, path, "rank")
        checks.whole(f"lora: {path}", 1, rank=r)
        lead, inner = np.split(kernel.shape, [_lead(kernel.shape)])
        bound, own = 1 / math.sqrt(inner[:-1].prod()), jax.random.fold_in(key, zlib.crc32(path.encode()))
        a = jax.random.uniform(own, (*kernel.shape[:-1], r), minval=-bound, maxval=bound)
        factors[path] = {"a": a, "b": jnp.zeros((*lead, r, kernel.shape[-1]))}
        gains[path] = jnp.full((*lead, r, 1), (r if alpha is None else _of(alpha, path, "alpha")) / r)
    return Adapter(factors, gains)


def merged(params: Params, adapter: Adapter, scale: Any = 1.0) -> Params:
    """Return parameters with `scale` times an adapter added in float32 or better, each in the dtype that it had."""
    check_fits(params, adapter)

    def add(path, leaf):
        name = _name(path)
        if name not in adapter.factors:
            return leaf
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return (wide + scale * _product(adapter, name)).astype(leaf.dtype)

    return jax.tree.map_with_path(add, params)


def unmerged(params: Params, adapter: Adapter, scale: Any = 1.0) -> Params:
    """Take an adapter out of parameters that it was merged into with this scale: float32 ones to rounding."""
    return merged(params, adapter, -scale)


def with_adapter(apply: Apply, gains: dict[str, Array], *, scale: Any = 1.0) -> Apply:
    """Return a network's apply for {"network": ..., "lora": factors}, of which only the factors have gradients."""

    def adapted(params, x, t, cond):
        base = jax.lax.stop_gradient(params["network"])
        return apply(merged(base, Adapter(params["lora"], gains), scale), x, t, cond)

    return adapted


def scaled(adapter: Adapter, scale: Any) -> Adapter:
    """Return an adapter whose every effect is `scale` times as large."""
    return adapter._replace(gains={path: scale * gain for path, gain in adapter.gains.items()})


def joined(adapters: Sequence[Adapter]) -> Adapter:
    """Return the one adapter that has the effect of all together: their ranks side by side."""
    factors, gains = {}, {}
    for path in dict.fromkeys(path for adapter in adapters for path in adapter.factors):
        parts = [adapter for adapter in adapters if path in adapter.factors]
        factors[path] = {
            name: jnp.concatenate([part.factors[path][name] for part in parts], axis)
            for name, axis in (("a", -1), ("b", -2))
        }
        shares = math.lcm(*(part.gains[path].shape[-1] for part in parts))
        gains[path] = jnp.concatenate([_repeated(part.gains[path], shares) for part in parts], -2)
    return Adapter(factors, gains)


def split(changed: Params, base: Params, *, targets: Sequence[str], rank: int | Mapping[str, int]) -> Adapter:
    """Return the adapter nearest to the change of the kernels that fit `targets`, in the sense of squares: by its SVD.

    A kernel with fewer rows or columns than the rank gets as many as it has, which is exact.
    """
    before, factors, gains = chosen(base, targets), {}, {}
    for path, kernel in chosen(changed, targets).items():
        if path not in before or before[path].shape != kernel.shape:
            raise ValueError(
                f"lora: {path} is of another shape, or not there, in the base; both must be of one network."
            )
        r = _of(rank, path, "rank")
        checks.whole(f"lora: {path}", 1, rank=r)
        lead = kernel.shape[: _lead(kernel.shape)]
        change = kernel.astype(jnp.float32) - before[path].astype(jnp.float32)
        u, s, v = jnp.linalg.svd(change.reshape(*lead, -1, kernel.shape[-1]), full_matrices=False)
        root = jnp.sqrt(s[..., :r])
        a, b = u[..., :r] * root[..., None, :], root[..., None] * v[..., :r, :]
        factors[path] = {"a": a.reshape(*kernel.shape[:-1], -1), "b": b}
        gains[path] = jnp.ones((*lead, root.shape[-1], 1))
    return Adapter(factors, gains)


def chosen(params: Params, targets: Sequence[str]) -> dict[str, Any]:
    """Return the kernels, by path, of the layers whose paths fit one of the patterns; each must fit some."""
    kernels = kernels_of(params)
    if isinstance(targets, str) or not targets:
        raise ValueError(f"lora: targets are {targets!r}; they must be a tuple of patterns of layers.")
    for pattern in targets:
        if not any(_fits(path, pattern) for path in kernels):
            known = ", ".join(_layer(path) for path in list(kernels)[:8])
            raise ValueError(f"lora: no layer fits the target '{pattern}'. There are {known}, ...")
    return {path: kernel for path, kernel in kernels.items() if any(_fits(path, pattern) for pattern in targets)}


def kernels_of(params: Params) -> dict[str, Any]:
    """Map paths, joined by slashes, to the kernels of dense layers and convolutions."""
    found = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    return {path: leaf for path, leaf in found.items() if f"/{path}".endswith("/kernel") and len(leaf.shape) >= 2}


def check_fits(params: Params, adapter: Adapter) -> None:
    """Refuse an adapter of kernels that the parameters lack or that are of other shapes."""
    kernels = kernels_of(params)
    if adapter.factors.keys() != adapter.gains.keys():
        raise ValueError("lora: the factors and the gains of an adapter must be of the same kernels.")
    for path, factors in adapter.factors.items():
        if path not in kernels:
            raise ValueError(
                f"lora: the adapter has {path}, which is no kernel of these parameters; it is of another base."
            )
        kernel, a, b, gain = (tuple(x.shape) for x in (kernels[path], factors["a"], factors["b"], adapter.gains[path]))
        lead = kernel[: _lead(kernel)]
        wanted = ((*kernel[:-1], a[-1]), (*lead, a[-1], kernel[-1]), (*lead, a[-1], gain[-1]))
        if (a, b, gain) != wanted or kernel[-1] % gain[-1]:
            raise ValueError(
                f"lora: {path} is {kernel}, which a of {a}, b of {b} and gains of {gain} do not fit: the adapter is of "
                "another base."
            )


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _product(adapter, path):
    """Evaluate A (g * B) of a kernel, in float32 on every device."""
    a, b, gain = (jnp.asarray(x) for x in (*map(adapter.factors[path].get, "ab"), adapter.gains[path]))
    b = b * _repeated(gain, b.shape[-1])
    window = (1,) * (a.ndim - b.ndim)
    return jnp.matmul(a, b.reshape(*b.shape[:-2], *window, *b.shape[-2:]), precision="highest")


def _repeated(gain, shares):
    """Write gains down for more shares."""
    return jnp.repeat(jnp.asarray(gain), shares // gain.shape[-1], axis=-1)


def _lead(shape: tuple[int, ...]) -> int:
    """Return how many axes of a kernel count layers: (in, out) or (window, window, in, out) are what is left."""
    return len(shape) - (4 if len(shape) >= 4 else 2)


def _of(numbers, path, what):
    """Look up a layer's number."""
    if not isinstance(numbers, Mapping):
        return numbers
    for pattern, number in numbers.items():
        if _fits(path, pattern):
            return number
    raise ValueError(f"lora: no pattern of {what} fits {_layer(path)}; there are {', '.join(numbers)}. Add '*'.")


def _fits(path, pattern):
    return fnmatch.fnmatchcase(_layer(path), pattern)


def _layer(path):
    return path.removesuffix("/kernel")
