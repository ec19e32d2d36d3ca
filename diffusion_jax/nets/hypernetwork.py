"""Hypernetworks: small networks that change what attention makes its keys and values of (NovelAI 2022).

    k = W_k (c + s f_k(c)),        v = W_v (c + s f_v(c))                                                      (1)

c is what is attended to, a text or the image's own tokens. f_k and f_v are a few dense layers, as wide as the multiples
`structure` of c, of which the last is zero at first. There is one pair for each width of c, which all layers share that
attend to something so wide; where there is none, attention is what it was. The network knows nothing of them, and its
parameters stay as they are:

    apply = with_hypernetwork(apply_of(network), hypernetwork(widths=(768,)))
    apply({"network": params, "hypernetwork": more}, x, t, cond)
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.naming import lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.activation import ACTIVATIONS
from diffusion_jax.nets.attention import Attention
from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.initial import ZERO, fan_in
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.norm import LayerNorm
from diffusion_jax.types import Apply, Array, Key


def hypernetwork(
    *,
    widths: tuple[int, ...] = (768,),
    structure: tuple[float, ...] = (1, 2, 1),
    activation: str = "linear",
    norm: bool = False,
    dropout: float = 0.0,
    bent_end: bool = False,
) -> nn.Module:
    """Build a hypernetwork for contexts of these widths; `bent_end` puts the activation behind the last layer too."""
    checks.whole("hypernetwork", 1, **{f"widths[{place}]": width for place, width in enumerate(widths)})
    checks.share("hypernetwork", dropout=dropout)
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"hypernetwork: widths are {widths}; there must be some, each once.")
    if len(structure) < 2 or {structure[0], structure[-1]} != {1} or min(structure) <= 0:
        raise ValueError(f"hypernetwork: structure is {structure}; it must go from 1 to 1, as (1, 2, 1) does.")
    bend = lookup(BENDS, activation, "activation of hypernetwork")
    return Hypernetwork(tuple(widths), Shape(tuple(structure), bend, norm, dropout, bent_end))


def with_hypernetwork(apply: Apply, module: nn.Module, *, scale: Any = 1.0) -> Apply:
    """Return a network's apply under Eq. (1), for {"network": ..., "hypernetwork": ...}; the second has gradients."""

    def changed(params, x, t, cond):
        keys = (cond or {}).get("dropout")

        def step_in(call, args, kwargs, where):
            if not isinstance(where.module, Attention) or where.method_name != "read":
                return call(*args, **kwargs)
            place = zlib.crc32("/".join(where.module.path).encode())
            own = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, place)
            return module.apply({"params": params["hypernetwork"]}, *args, scale=scale, dropout=own)

        with nn.intercept_methods(step_in):
            return apply(jax.lax.stop_gradient(params["network"]), x, t, cond)

    return changed


class Shape(NamedTuple):
    """What all parts of a hypernetwork share."""

    structure: tuple[float, ...]
    bend: Callable[[Array], Array]
    norm: bool
    dropout: float
    bent_end: bool


class Hypernetwork(nn.Module):
    """The network of `hypernetwork`: called with a context (B, L, D), it returns those of keys and of values."""

    widths: tuple[int, ...]
    shape: Shape

    def setup(self):
        self.keys = {str(width): Change(self.shape) for width in self.widths}
        self.values = {str(width): Change(self.shape) for width in self.widths}

    def __call__(self, context: Array, *, scale: Any = 1.0, dropout: Key | None = None) -> tuple[Array, Array]:
        halves = self.keys, self.values
        if self.is_initializing():
            for width in self.widths:
                for half in halves:
                    half[str(width)](jnp.zeros((1, 1, width)), None)
        if context.shape[-1] not in self.widths:
            return context, context
        for_keys, for_values = (half[str(context.shape[-1])](context, dropout) for half in halves)
        return context + scale * for_keys, context + scale * for_values


class Change(nn.Module):
    """f_k or f_v of one width."""

    shape: Shape

    @nn.compact
    def __call__(self, h: Array, keys: Key | None) -> Array:
        shape, width, last = self.shape, h.shape[-1], len(self.shape.structure) - 2
        for place, multiple in enumerate(shape.structure[1:]):
            h = Dense(int(multiple * width), ZERO if place == last else fan_in(), name=f"dense_{place}")(h)
            if place < last or shape.bent_end:
                h = shape.bend(h)
            if shape.norm:
                h = LayerNorm(name=f"norm_{place}")(h)
            if place < last:
                h = Dropout(shape.dropout, name=f"dropout_{place}")(h, keys)
        return h


def linear(x: Array) -> Array:
    """Leave x as it is."""
    return x


BENDS = {
    **ACTIVATIONS,
    "linear": linear,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "mish": jax.nn.mish,
}
