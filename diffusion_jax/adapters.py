"""What is trained beside a network that is held, by its name in a config.

    adapter  {"name": "lora", "targets": ("*attention/qkv", "*to_text/q", "*to_text/kv"), "rank": 8}

The parameters are then {"network": ..., "lora": ...}, of which training moves the second; what the first are,
config.start says.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from diffusion_jax.naming import choose
from diffusion_jax.nets import lora as low_rank
from diffusion_jax.nets.network import shapes_of
from diffusion_jax.types import Apply, Key, Params


class Adapted(NamedTuple):
    """A network's apply as one of all parameters; all of these from the network's own; and those that are held."""

    apply: Callable[[Apply], Apply]
    begin: Callable[[Params, Key], Params]
    held: tuple[str, ...]


def make_adapter(spec: Any, module: nn.Module, example: tuple[Any, Any, Any]) -> Adapted:
    """Build what `adapter` names in a config, for a network and what it is called with, by shape."""
    return choose(ADAPTERS, spec, "adapter", module, example)


def none(module: nn.Module, example: tuple[Any, Any, Any]) -> Adapted:
    """Train the network itself."""
    return Adapted(lambda apply: apply, lambda params, key: params, ())


def lora(
    module: nn.Module,
    example: tuple[Any, Any, Any],
    *,
    targets: Sequence[str] = ("*attention/qkv", "*attention/out"),
    rank: int = 8,
    alpha: float | None = None,
) -> Adapted:
    """Train adapters of low rank of the layers whose paths fit `targets`: see `nets.lora`."""

    def start(params, key):
        return low_rank.start(params, key, targets=tuple(targets), rank=rank, alpha=alpha)

    gains = start(shapes_of(module, example), jax.random.key(0)).gains
    return Adapted(
        lambda apply: low_rank.with_adapter(apply, gains),
        lambda params, key: {"network": params, "lora": start(params, key).factors},
        ("network",),
    )


ADAPTERS = {"none": none, "lora": lora}
