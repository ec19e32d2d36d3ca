"""Folders of weights, made from files of reference values."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.nets.network import shapes_of
from diffusion_jax.pretrained.rules import Pretrained, Table, convert, export, plan
from diffusion_jax.pretrained.tensors import of_arrays

CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}  # what is asked of every network in float32
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


def write(folder: Path, config: dict[str, Any], weights: Any, name: str = "model.safetensors") -> Path:
    """Write a folder as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / name)
    return folder


def family(name: str, folder: Path) -> Path:
    """Write a tiny network of a family, as its own library would, or return where one is."""
    models = {"UNet2DModel": "unet2d_ddpm", "UNet2DConditionModel": "unet_sd15", "AutoencoderKL": "vae_sd"}
    models |= {"clip_text_model": "clip_text", "t5": "t5_encoder", "ControlNetModel": "controlnet"}
    models |= {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux_schnell", "DiTTransformer2DModel": "dit"}
    if name in models:
        return REFERENCE / "models" / models[name]
    if name == "Transformer2DModel":
        original = REFERENCE / "models" / "dit"
        config = json.loads((original / "config.json").read_text()) | {"_class_name": name}
        weights = safetensors.numpy.load_file(original / "diffusion_pytorch_model.safetensors")
        return write(folder, config, weights, "diffusion_pytorch_model.safetensors")
    if name == "mt5":
        original = REFERENCE / "models" / "t5_encoder"
        config = json.loads((original / "config.json").read_text()) | {
            "model_type": "mt5",
            "architectures": ["MT5EncoderModel"],
        }
        return write(folder, config, safetensors.numpy.load_file(original / "model.safetensors"))
    if name == "VQModel":
        return write(folder, *stored("vq_tiny.npz"), "diffusion_pytorch_model.safetensors")
    if name.startswith("dinov2"):
        config, weights = stored("dinov2_tiny.npz", "plain/" if name == "dinov2" else "registered/")
        return write(folder, config, {key: array for key, array in weights.items() if "mask_token" not in key})
    config, weights = stored("clip_tiny.npz")
    if name == "clip":
        return write(folder, config, weights)
    assert name == "clip_vision_model"
    inner = config["vision_config"] | {"architectures": ["CLIPVisionModelWithProjection"]}
    inner["projection_dim"] = config["projection_dim"]
    return write(folder, inner, {key: array for key, array in weights.items() if key.startswith("vis")})


def check_round(table: Table, model: Pretrained, weights: Any) -> None:
    """Assert that what was read is written as it was, and read again as it is, to the bit."""
    out = export(table, model.params)
    assert out.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, out, dict(weights))
    again = convert(table, of_arrays(out, "memory"), model.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, again)


def theirs(kind: str, config: dict[str, Any], folder: Path) -> Any:
    """Build a network of diffusers of random parameters, none of them 1 or 0, write it to a folder and return it."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = getattr(diffusers, kind).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def answer(model: Any, inputs: Any) -> np.ndarray:
    """Call a network of diffusers."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(**{key: torch.tensor(value) for key, value in inputs.items()}).sample.numpy()


def check_published(kind: str, config: dict[str, Any], build: Any, example: Any, table_of: Any) -> None:
    """Assert that a network of published size has diffusers' tensors: names and shapes, for nothing of it is made."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    whole = dict(model.config)
    slots = plan(table_of(whole).rules, shapes_of(build(whole), example(whole)))
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert {key: slot.shape for key, slot in slots.items()} == wanted
