"""What is trained beside a network that is held, by its name in a config.

    adapter  {"name": "lora", "targets": ("*attention/qkv", "*to_text/q", "*to_text/kv"), "rank": 8}
    adapter  {"name": "control", "hint_widths": (16, 32, 96, 256)}

The parameters are then {"network": ..., "lora": ...}, or {"network": ..., "control": ...}, of which training moves the
second; what the first are, config.start says.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from diffusion_jax.naming import choose
from diffusion_jax.nets import lora as low_rank
from diffusion_jax.nets.condition import check_hint
from diffusion_jax.nets.controlnet import clone, controlled, controlnet
from diffusion_jax.nets.network import shapes_of
from diffusion_jax.nets.unet import UNet
from diffusion_jax.types import Apply, Key, Params


class Adapted(NamedTuple):
    """A network's apply as one of all parameters; all of these from the network's own; and those that are held."""

    apply: Callable[[Apply], Apply]
    begin: Callable[[Params, Key], Params]
    held: tuple[str, ...]


def make_adapter(spec: Any, module: nn.Module, example: tuple[Any, Any, Any], hint: Any = None) -> Adapted:
    """Build what `adapter` names in a config, for a network and what it is called with, by shape.

    `hint` is the shape of what a control network is told besides, if anything is.
    """
    return choose(ADAPTERS, spec, "adapter", module, example, hint)


def none(module: nn.Module, example: tuple[Any, Any, Any], hint: Any) -> Adapted:
    """Train the network itself."""
    _check_deaf("none", hint)
    return Adapted(lambda apply: apply, lambda params, key: params, ())


def lora(
    module: nn.Module,
    example: tuple[Any, Any, Any],
    hint: Any,
    *,
    targets: Sequence[str] = ("*attention/qkv", "*attention/out"),
    rank: int = 8,
    alpha: float | None = None,
) -> Adapted:
    """Train adapters of low rank of the layers whose paths fit `targets`: see `nets.lora`."""
    _check_deaf("lora", hint)

    def start(params, key):
        return low_rank.start(params, key, targets=tuple(targets), rank=rank, alpha=alpha)

    gains = start(shapes_of(module, example), jax.random.key(0)).gains
    return Adapted(
        lambda apply: low_rank.with_adapter(apply, gains),
        lambda params, key: {"network": params, "lora": start(params, key).factors},
        ("network",),
    )


def control(
    module: nn.Module,
    example: tuple[Any, Any, Any],
    hint: Any,
    *,
    hint_widths: Sequence[int] = (16, 32, 96, 256),
    middle_blocks: int = 2,
    pool: str = "none",
    scale: float = 1.0,
) -> Adapted:
    """Train a clone of a U-Net's way down that reads an image, the entry `hint` of `cond`: see `nets.controlnet`."""
    if not isinstance(module, UNet):
        raise ValueError(
            f"config.adapter is control, which steers a unet; config.network is a {type(module).__name__}."
        )
    if hint is None:
        raise ValueError(
            "config.adapter is control, and no hint is told: add the transform {'name': 'hint', 'of': 'edges'} and "
            "'hint' to config.cond."
        )
    steering = controlnet(
        module, hint_channels=hint.shape[-1], hint_widths=tuple(hint_widths), middle_blocks=middle_blocks, pool=pool
    )
    check_hint(hint, example[0], hint.shape[-1], 2 ** (len(hint_widths) - 1))

    def answer(params, x, t, cond) -> Any:
        return steering.apply({"params": params}, x, t, cond)

    return Adapted(
        lambda apply: controlled(apply, answer, scale=scale),
        lambda params, key: {"network": params, "control": clone(params, steering, key)},
        ("network",),
    )


def _check_deaf(name, hint):
    """Refuse to tell a hint where no control network hears it."""
    if hint is not None:
        raise ValueError(f"config.cond has 'hint', which config.adapter {name} does not hear; take adapter control.")


ADAPTERS = {"none": none, "lora": lora, "control": control}
