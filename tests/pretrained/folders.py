"""Folders of weights, made from files of reference values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

REFERENCE = Path(__file__).parent.parent / "reference"
CLIP_TEXT = REFERENCE / "models" / "clip_text"


def stored(name: str, prefix: str = "") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the config and the weights that a file of reference values holds under a prefix."""
    with np.load(REFERENCE / name) as file:
        start = f"{prefix}weights/"
        weights = {key.removeprefix(start): file[key] for key in file.files if key.startswith(start)}
        return json.loads(str(file[f"{prefix}config"])), weights


def tiny_clip(folder: Path) -> Path:
    """Write a tiny CLIP with a tokenizer of the letters a and b."""
    words = ["a", "b", "a</w>", "b</w>", *(f"word{n}" for n in range(44)), "<|startoftext|>", "<|endoftext|>"]
    write(folder, *stored("clip_tiny.npz"))
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("")
    return folder


def write(folder: Path, config: dict[str, Any], weights: dict[str, Any], name: str = "model.safetensors") -> Path:
    """Write a folder as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / name)
    return folder
