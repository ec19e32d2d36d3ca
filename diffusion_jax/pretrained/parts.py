"""Whole pipelines: networks, tokenizers and the config of a scheduler, each read when it is asked for.

    pipeline = load(folder)
    states = pipeline.parts["text_encoder"](ids)          # read, used and dropped
    unet = pipeline.parts["unet"]                         # only now

Nothing is kept here, so a part is in memory for as long as whoever asked for it keeps it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.pretrained.t5_tokenizer import t5_tokenizer
from diffusion_jax.pretrained.tensors import CONFIG, read_json
from diffusion_jax.pretrained.tokenizer import clip_tokenizer

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"


class Parts(Mapping[str, Any]):
    """Names of parts to the parts, which are read anew whenever they are asked for."""

    def __init__(self, openers: Mapping[str, Callable[[], Any]], left: Mapping[str, str] = {}) -> None:
        """Take what opens each part, and what is said of those that are not known."""
        self._openers, self._left = dict(openers), dict(left)

    def __getitem__(self, name: str) -> Any:
        if name in self._openers:
            return self._openers[name]()
        known = f"known are {', '.join(self._openers) or 'none'}"
        raise KeyError(f"{self._left.get(name, f'there is no part {name!r}')}; {known}")

    def __contains__(self, name: object) -> bool:
        return name in self._openers

    def __iter__(self) -> Iterator[str]:
        return iter(self._openers)

    def __len__(self) -> int:
        return len(self._openers)


class Pipeline(NamedTuple):
    """Parts by name; the config of the scheduler, {} where there is none; model_index.json; folders of tokenizers."""

    parts: Parts
    scheduler: dict[str, Any]
    config: dict[str, Any]
    tokenizers: Mapping[str, Path] = {}


def pipeline_of(folder: Path, load: Callable[..., Any], kinds: Collection[Any]) -> Pipeline:
    """Return the pipeline of a folder, whose networks of these kinds `load(subfolder=name)` reads."""
    config, classes = read_index(folder, "load")
    openers, left, tokenizers = {}, {}, {}
    for name, kind in classes.items():
        if kind in TOKENIZERS:
            tokenizers[name] = folder / name
            openers[name] = partial(TOKENIZERS[kind], folder / name)
        elif _kind(folder / name / CONFIG) in kinds:
            openers[name] = lambda name=name: load(subfolder=name)
        elif name != "scheduler":
            left[name] = f"{folder / name} is a {kind}, which is not known here"
    scheduler = folder / "scheduler" / SCHEDULER
    said = read_json(scheduler, "load") if scheduler.is_file() else {}
    return Pipeline(Parts(openers, left), said, config, tokenizers)


def read_index(folder: Path, wanted: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read model_index.json: all that it says, and the class of each part that is there; `wanted` says what for."""
    path = folder / INDEX
    config = read_json(path, wanted)
    if not config:
        raise ValueError(f"{wanted}: {path} names no parts of a pipeline; it is damaged: download it again.")
    return config, classes_of(config, path, wanted)


def classes_of(config: Mapping[str, Any], path: str | Path, wanted: str) -> dict[str, str]:
    """Return the class of each part that model_index.json at a path says is there."""
    classes = {}
    for name, spec in config.items():
        if name.startswith("_") or not isinstance(spec, list) or (spec and not isinstance(spec[0], str | None)):
            continue  # a setting, which may be a list of numbers
        if spec == [None, None]:
            continue
        if len(spec) != 2 or not all(isinstance(word, str) for word in spec):
            raise ValueError(
                f"{wanted}: {path} has {name}={spec!r}; a part is [library, class], or [null, null] where it is not "
                "there. The file is damaged: download it again."
            )
        if Path(name).name != name or name == "..":
            raise ValueError(f"{wanted}: {path} has a part {name!r}; a part is a folder beside that file.")
        classes[name] = spec[1]
    return classes


def _kind(path):
    config = read_json(path, "load") if path.is_file() else {}
    return str(config.get("model_type") or config.get("_class_name"))


TOKENIZERS = {
    "CLIPTokenizer": clip_tokenizer,
    "CLIPTokenizerFast": clip_tokenizer,
    "T5Tokenizer": t5_tokenizer,
    "T5TokenizerFast": t5_tokenizer,
}
