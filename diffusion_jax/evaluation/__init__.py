"""Measures of samples. `evaluate` asks all of it in one call: see `diffusion_jax.assess`."""

from importlib import import_module
from typing import Any

__all__ = ["evaluate"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "evaluate":  # the call stands above the rooms; the room only knows where
        return import_module("diffusion_jax.assess").evaluate
    raise AttributeError(f"diffusion_jax.evaluation has no '{name}'.")
