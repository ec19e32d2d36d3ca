"""Captions, and what a network is told for them, by the name that a config has for the way between.

A caption becomes tokens, which are small and need no network, and tokens become entries of `cond`. Of other people's
encoders the second step needs weights, which lie where they were, are read when first needed, and are never trained.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.source import Info
from diffusion_jax.data.transform import Transform, check_entry
from diffusion_jax.data.words import encoded
from diffusion_jax.naming import choose
from diffusion_jax.pretrained.clip import load_clip_text, text_sizes
from diffusion_jax.pretrained.held import held
from diffusion_jax.pretrained.tokenizer import clip_tokens
from diffusion_jax.types import Batch

TOKENS = "tokens"  # the entry of an example that captions become where an encoder has the second step


class Prompts(NamedTuple):
    """`tokens(captions)` gives arrays (N, ...) by name, and what of each caption there was no room for.

    `tell(tokens)` makes of them the entries of `cond`, whose `shapes` are those of an example; none where captions come
    as data encoded already.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tokens: Callable[[Sequence[str]], tuple[dict[str, np.ndarray], Sequence[str]]]
    tell: Callable[[Mapping[str, Any]], dict[str, Any]]


def make_prompts(spec: Any, info: Info) -> Prompts:
    """Build what `text` names in a config, for data such as `info` describes."""
    return choose(PROMPTS, spec, "text", info)


def told_for(prompts: Prompts, captions: Sequence[str]) -> dict[str, Any]:
    """Return the entries of `cond` for captions, each of which is encoded once; what was cut of one is said."""
    rows = {caption: _row(prompts.tokens, prompts.tell, caption) for caption in dict.fromkeys(captions)}
    return {name: jnp.stack([rows[caption][name] for caption in captions]) for name in rows[captions[0]]}


def spoken(prompts: Prompts, cond: Sequence[str]) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return the transforms that make captions into tokens, and the entries of `cond` that data have then."""
    if not prompts.shapes or not set(cond) & set(prompts.shapes):
        return (), tuple(cond)

    def tokens(info):
        check_entry(info, "caption", "text")
        shapes = {name: shape for name, shape in info.shapes.items() if name != "caption"}

        def apply(example, draw):
            rest = {name: value for name, value in example.items() if name != "caption"}
            found = prompts.tokens([example["caption"]])[0]
            return rest | {TOKENS: {name: value[0] for name, value in found.items()}}

        return Transform(TOKENS, info._replace(shapes=shapes | {TOKENS: ()}), apply)

    return (tokens,), (*(name for name in cond if name not in prompts.shapes), TOKENS)


def hear(prompts: Prompts, batch: Batch) -> Batch:
    """Return a batch with its tokens encoded."""
    cond = dict(batch.get("cond", {}))
    if TOKENS not in cond:
        return batch
    found = prompts.tell(cond.pop(TOKENS))
    return batch | {"cond": cond | found}


def words(info: Info) -> Prompts:
    """Take what the transform `words` makes of captions."""

    def tokens(captions):
        length, width = (int(size or 0) for size in info.shapes["text"])
        pairs = [encoded(caption, length=length, width=width) for caption in captions]
        text, mask = (np.stack(rows) for rows in zip(*pairs, strict=True))
        return ({"text": text} | ({"text_mask": mask} if "text_mask" in info.shapes else {})), [""] * len(captions)

    return Prompts({}, tokens, dict)


def clip(
    info: Info, *, folder: str, hash: str = "", length: int = 77, dtype: str = "float32", variant: str = ""
) -> Prompts:
    """The last state of CLIP's text half: `text_encoder` and `tokenizer` of a folder of Stable Diffusion 1 or 2."""
    encoder = Path(folder).expanduser() / "text_encoder"
    most, width = text_sizes(encoder)
    length = min(length, most)
    read = clip_tokens(Path(folder) / "tokenizer", length=length)

    def tokens(captions):
        found = read(captions)
        return {"ids": found.ids}, found.cut

    def tell(tokens):
        network = held(load_clip_text, str(encoder), known=hash, dtype=dtype, variant=variant)
        return {"text": _states(network.module, network.params, tokens["ids"])}

    return Prompts({"text": (length, width)}, tokens, tell)


@functools.partial(jax.jit, static_argnums=0)
def _states(module, params, ids):
    return module.apply({"params": params}, ids).tokens


@functools.lru_cache(maxsize=128)
def _row(tokens, tell, caption):
    """Encode one caption; the last of them are kept."""
    found, (cut,) = tokens([caption])
    if cut:
        warnings.warn(f"the caption '{caption}' is too long: what is cut is '{cut}'.", stacklevel=2)
    return {name: value[0] for name, value in tell(found).items()}


PROMPTS = {"words": words, "clip": clip}
