"""Data without JAX: sources of examples, what is done to each, and the batches of a run.

Nothing here loads JAX until batches are read ahead of time (ahead.py), so that reading, drawing and preparing data
need numpy and Pillow alone.
"""

from typing import Any

from diffusion_jax.data.array import array
from diffusion_jax.data.density import density
from diffusion_jax.data.folder import folder
from diffusion_jax.data.pipeline import first, make_evaluation, make_pipeline
from diffusion_jax.data.shapes import shapes
from diffusion_jax.data.source import Source
from diffusion_jax.data.tfds import tfds
from diffusion_jax.data.transforms import TRANSFORMS
from diffusion_jax.naming import choose

__all__ = ["SOURCES", "TRANSFORMS", "first", "make_evaluation", "make_pipeline", "make_source"]


def make_source(spec: Any) -> Source:
    """Build an entry of SOURCES from its name, or from a mapping of `name` and keywords."""
    return choose(SOURCES, spec, "source")


SOURCES = {
    "array": array,
    "density": density,
    "folder": folder,
    "shapes": shapes,
    "tfds": tfds,
}
