"""Captions, and what a network is told for them, by the name that a config has for the way between.

A caption becomes tokens, which are small and need no network, and tokens become entries of `cond`. Of other people's
encoders the second step needs weights, which lie where they were, are read when first needed, and are never trained.
"""

import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.source import Info
from diffusion_jax.data.transform import Transform, check_entry
from diffusion_jax.data.words import encoded
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets.checks import dtype_of
from diffusion_jax.pretrained.clip import load_clip_text
from diffusion_jax.pretrained.held import check, held
from diffusion_jax.pretrained.t5 import load_t5
from diffusion_jax.pretrained.t5_tokenizer import t5_tokenizer
from diffusion_jax.pretrained.tensors import read_config
from diffusion_jax.pretrained.tokenizer import Tokens, check_words, clip_tokens
from diffusion_jax.pretrained.unet import micro
from diffusion_jax.types import Batch

TOKENS = "tokens"  # the entry of an example that captions become where an encoder has the second step


class Prompts(NamedTuple):
    """`tokens(captions)` gives arrays (N, ...) by name, and what of each caption there was no room for.

    `tell(tokens)` makes of them the entries of `cond`, whose `shapes` are those of an example; none where captions come
    as data encoded already. `check()` refuses encoders that cannot be read, or are not those that they were.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tokens: Callable[[Sequence[str]], tuple[dict[str, np.ndarray], Sequence[str]]]
    tell: Callable[[Mapping[str, Any]], dict[str, Any]]
    check: Callable[[], None] = lambda: None


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


def hear(prompts: Prompts, batch: Batch, told: Collection[str]) -> Batch:
    """Return a batch with its tokens encoded, as far as a network is told what they say."""
    cond = dict(batch.get("cond", {}))
    if TOKENS not in cond:
        return batch
    found = {name: value for name, value in prompts.tell(cond.pop(TOKENS)).items() if name in told}
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
    info: Info,
    *,
    folder: str,
    hashes: tuple = ("",),
    words: tuple = ("",),
    dtype: str = "float32",
    variant: str = "",
    offload: bool = False,
) -> Prompts:
    """The last states of CLIP: `text_encoder` and `tokenizer` of a folder of Stable Diffusion 1 or 2."""
    one = _clip(folder, "", (hashes[0], words[0]), dtype, variant, offload)
    return _prompts({"ids": one}, lambda ids: {"text": one.read(ids["ids"]).tokens}, {"text": (one.length, one.width)})


def clip_pair(
    info: Info,
    *,
    folder: str,
    hashes: tuple = ("", ""),
    words: tuple = ("", ""),
    size: tuple = (1024, 1024),
    waves: int = 256,
    empty: str = "zeros",
    dtype: str = "float32",
    variant: str = "",
    offload: bool = False,
) -> Prompts:
    """The last states but one of two CLIPs side by side, and what the second makes of the whole: SDXL.

    In `pooled` lie beside that the `waves` of six numbers: the `size` of the original, its crop and its target. An
    `empty` prompt is "zeros", as SDXL was trained, or "read" as any other.
    """
    lookup(dict.fromkeys(("zeros", "read")), empty, "empty of clip_pair")
    first = _clip(folder, "", (hashes[0], words[0]), dtype, variant, offload)
    second = _clip(folder, "_2", (hashes[1], words[1]), dtype, variant, offload, projects=True)

    def tell(ids):
        states = [one.read(ids[name]) for name, one in (("ids", first), ("ids_2", second))]
        text, pooled = jnp.concatenate([one.layers[-2] for one in states], -1), states[1].projected
        if empty == "zeros":
            text, pooled = (_where_said(ids["said"], value) for value in (text, pooled))
        numbers = jnp.asarray([[*size, 0, 0, *size]] * len(pooled), jnp.float32)
        return {"text": text, "pooled": micro(pooled, numbers, width=waves)}

    shapes = {"text": (first.length, first.width + second.width), "pooled": (second.projection + 6 * waves,)}
    return _prompts({"ids": first, "ids_2": second}, tell, shapes)


def clip_t5(
    info: Info,
    *,
    folder: str,
    hashes: tuple = ("", "", ""),
    words: tuple = ("", "", ""),
    length: int = 256,
    zeros: int = 0,
    dtype: str = "float32",
    variant: str = "",
    offload: bool = False,
) -> Prompts:
    """Two CLIPs side by side, and T5 behind them: Stable Diffusion 3, whose `pooled` is that of both CLIPs.

    For a T5 that was left out stand `zeros`, if there are any, which are as wide as it would have been.
    """
    first = _clip(folder, "", (hashes[0], words[0]), dtype, variant, offload, projects=True)
    second = _clip(folder, "_2", (hashes[1], words[1]), dtype, variant, offload, projects=True)
    third = None if zeros else _t5(folder, "_3", (hashes[2], words[2]), length, dtype, variant, offload)
    width = third.width if third else zeros

    def tell(ids):
        states = [one.read(ids[name]) for name, one in (("ids", first), ("ids_2", second))]
        pair = jnp.concatenate([one.layers[-2] for one in states], -1)
        pair = jnp.pad(pair, ((0, 0), (0, 0), (0, width - pair.shape[-1])))
        rest = third.read(ids["ids_3"]) if third else jnp.zeros((len(pair), length, width))
        text = jnp.concatenate([pair, rest], 1)
        return {"text": text, "pooled": jnp.concatenate([one.projected for one in states], -1)}

    shapes = {"text": (first.length + length, width), "pooled": (first.projection + second.projection,)}
    return _prompts({"ids": first, "ids_2": second, **({"ids_3": third} if third else {})}, tell, shapes)


def t5_clip(
    info: Info,
    *,
    folder: str,
    hashes: tuple = ("", ""),
    words: tuple = ("", ""),
    length: int = 512,
    guidance: float = 0.0,
    dtype: str = "float32",
    variant: str = "",
    offload: bool = False,
) -> Prompts:
    """T5, and the state of CLIP at the end of the text as `pooled`: Flux.

    Networks whose guidance was distilled are told its scale, which is `guidance` in training and 0 where they are not.
    """
    first = _clip(folder, "", (hashes[0], words[0]), dtype, variant, offload)
    second = _t5(folder, "_2", (hashes[1], words[1]), length, dtype, variant, offload)

    def tell(ids):
        told = {"text": second.read(ids["ids_2"]), "pooled": first.read(ids["ids"]).pooled}
        return told | ({"guidance": jnp.full(len(told["text"]), guidance)} if guidance else {})

    shapes = {"text": (length, second.width), "pooled": (first.width,), **({"guidance": ()} if guidance else {})}
    return _prompts({"ids": first, "ids_2": second}, tell, shapes)


class _Encoder(NamedTuple):
    """One encoder: how many tokens it is given, the widths of its states, its tokenizer, ids to states; its check."""

    length: int
    width: int
    projection: int
    tokens: Callable[[Sequence[str]], Tokens]
    read: Callable[[Any], Any]
    check: Callable[[], None]


def _prompts(encoders, tell, shapes) -> Prompts:
    """Return prompts of several encoders, by the names of their tokens."""

    def tokens(captions):
        found = {name: one.tokens(captions) for name, one in encoders.items()}
        # What every encoder leaves out is the least that any does.
        cut = [min((one.cut[place] for one in found.values()), key=len) for place in range(len(captions))]
        said = np.array([caption != "" for caption in captions])
        return {name: one.ids for name, one in found.items()} | {"said": said}, cut

    def check():
        for one in encoders.values():
            one.check()

    return Prompts(shapes, tokens, tell, check)


def _clip(folder, end, known, *how, projects=False) -> _Encoder:
    encoder = Path(folder).expanduser() / f"text_encoder{end}"
    config = read_config(encoder, ("clip_text_model", "clip"), "text")
    half = {"max_position_embeddings": 77, "hidden_size": 512, "projection_dim": 512, "vocab_size": 49408} | config
    if projects and not any("WithProjection" in kind for kind in config.get("architectures", ("WithProjection",))):
        raise ValueError(f"text: {encoder} has no projection, and is no second encoder of such a pipeline.")
    if config["model_type"] == "clip":
        half |= config.get("text_config") or {}
        half["projection_dim"] = config.get("projection_dim", 512)
    length = half["max_position_embeddings"]
    if not isinstance(length, int) or length < 3:
        raise ValueError(f"text: {encoder} has max_position_embeddings={length!r}; it must be a number of tokens.")
    home = Path(folder).expanduser() / f"tokenizer{end}"
    check_words(home, known[1])
    tokens = clip_tokens(home, length=length, vocabulary=half["vocab_size"], end=half.get("eos_token_id"))
    reads = _reads(load_clip_text, encoder, known[0], how)
    return _Encoder(length, half["hidden_size"], half["projection_dim"], tokens, *reads)


def _t5(folder, end, known, length, *how) -> _Encoder:
    encoder = Path(folder).expanduser() / f"text_encoder{end}"
    config = read_config(encoder, ("t5", "mt5"), "text")
    width, home = config.get("d_model", 512), Path(folder).expanduser() / f"tokenizer{end}"
    check_words(home, known[1])
    tokens = t5_tokenizer(home, length=length, vocabulary=config.get("vocab_size", 32128))
    return _Encoder(length, width, 0, tokens, *_reads(load_t5, encoder, known[0], how))


def _reads(load, encoder, known, how):
    """Return ids to states by a network that is read when it is first needed, and what checks it."""
    dtype, variant, offload = how
    dtype_of("what reads captions", dtype)

    def read(ids):
        network = held(load, str(encoder), known=known, dtype=dtype, variant=variant, offload=offload)
        return _states(network.module, network.params, ids)

    return read, lambda: check(load, str(encoder), known=known, dtype=dtype, variant=variant)


@functools.partial(jax.jit, static_argnums=0)
def _states(module, params, ids):
    return module.apply({"params": params}, ids)


def _where_said(said, value):
    """Leave zeros for what nothing was said for."""
    return jnp.where(jnp.reshape(said, (-1, *[1] * (value.ndim - 1))), value, 0)


@functools.lru_cache(maxsize=128)
def _row(tokens, tell, caption):
    """Encode one caption; the last of them are kept."""
    found, (cut,) = tokens([caption])
    if cut:
        warnings.warn(f"the caption '{caption}' is too long: what is cut is '{cut}'.", stacklevel=2)
    with jax.ensure_compile_time_eval():  # a row is kept, also where something is being traced
        return {name: value[0] for name, value in tell(found).items()}


PROMPTS = {"words": words, "clip": clip, "clip_pair": clip_pair, "clip_t5": clip_t5, "t5_clip": t5_clip}
