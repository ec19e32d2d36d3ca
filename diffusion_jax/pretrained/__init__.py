"""Other people's weights. The door is `load`; what it gives is a `Pretrained`, which `save` writes, or a `Pipeline`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_jax.pretrained.families import FAMILIES, load
    from diffusion_jax.pretrained.parts import Pipeline
    from diffusion_jax.pretrained.rules import Pretrained
    from diffusion_jax.pretrained.saving import save

__all__ = ["FAMILIES", "Pipeline", "Pretrained", "load", "save"]

_HOMES = {"FAMILIES": "families", "load": "families", "Pipeline": "parts", "Pretrained": "rules", "save": "saving"}


def __getattr__(name: str) -> Any:  # looked up when first used, so that reading one file of the room loads no other
    if name in _HOMES:
        return getattr(import_module(f"diffusion_jax.pretrained.{_HOMES[name]}"), name)
    raise AttributeError(f"diffusion_jax.pretrained has no '{name}'.")
