"""Captions as rows of vectors, without a trained encoder: enough for data whose captions have few words.

A word is a vector of standard normal numbers drawn from the word itself, so no vocabulary is needed; its place in the
caption is added in waves. The first vector is that of the caption's start, which even an empty caption has.
"""

import functools
import hashlib
import re

import numpy as np

from diffusion_jax.data.source import Info
from diffusion_jax.data.transform import Transform, check_entry


def words(info: Info, *, length: int = 12, width: int = 32) -> Transform:
    """Turn captions into the entries `text` (length, width) and `text_mask` (length,), which networks attend to."""
    check_entry(info, "caption", "words")
    if length < 2 or width < 2 or width % 2:
        raise ValueError(f"words: length is {length} and width {width}; give 2 or more, and an even width.")
    shapes = {name: shape for name, shape in info.shapes.items() if name != "caption"}
    after = info._replace(shapes={**shapes, "text": (length, width), "text_mask": (length,)})

    def apply(example, draw):
        rest = {name: value for name, value in example.items() if name != "caption"}
        text, mask = encoded(example["caption"], length=length, width=width)
        return rest | {"text": text, "text_mask": mask}

    return Transform("words", after, apply)


def encoded(caption: str, *, length: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors (length, width) of a caption and which of them exist; refuse one that is too long."""
    found = re.findall(r"\w+", caption.lower())
    if len(found) >= length:
        raise ValueError(
            f"the caption '{caption}' has {len(found)} words; with length={length} there is room for {length - 1}."
        )
    text = np.zeros((length, width), np.float32)
    for place, word in enumerate(("", *found)):
        text[place] = _vector(word, width) + _waves(place, width)
    return text, np.arange(length) <= len(found)


@functools.cache
def _vector(word, width):
    key = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.Philox(key)).standard_normal(width)


def _waves(place, width):
    angles = place * 100.0 ** -(np.arange(width // 2) / (width // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)])
