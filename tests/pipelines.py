"""Folders as diffusers writes them for whole pipelines, of tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.pretrained.folders import CLIP_TEXT, REFERENCE

MODELS = REFERENCE / "models"
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def stable_diffusion(folder: Path, scheduler: str = "DDIMScheduler", **changes: Any) -> Path:
    """Write Stable Diffusion as small as can be, whose prompts are words of the letters from a to z."""
    for part, model in (("unet", "unet_sd15"), ("vae", "vae_sd"), ("text_encoder", CLIP_TEXT.name)):
        shutil.copytree(MODELS / model, folder / part)
    tokenizer(folder / "tokenizer")
    said = {**STABLE_DIFFUSION, "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False, **changes}
    schedule(folder / "scheduler", scheduler, **said)
    kinds = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": scheduler}
    index(folder, "StableDiffusionPipeline", kinds, {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"})
    return folder


def ddpm(folder: Path) -> Path:
    """Write a DDPM of images of 16 by 16."""
    shutil.copytree(MODELS / "unet2d_ddpm", folder / "unet")
    schedule(folder / "scheduler", "DDPMScheduler")
    index(folder, "DDPMPipeline", {"unet": "UNet2DModel", "scheduler": "DDPMScheduler"})
    return folder


def dit(folder: Path, scheduler: str = "DDIMScheduler", **changes: Any) -> Path:
    """Write DiT of latents as small as can be."""
    for part, model in (("transformer", "dit"), ("vae", "vae_sd")):
        shutil.copytree(MODELS / model, folder / part)
    schedule(folder / "scheduler", scheduler, **{"clip_sample": False, **changes})
    kinds = {"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL", "scheduler": scheduler}
    labels = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "shark"}
    index(folder, "DiTPipeline", kinds, id2label=labels)
    return folder


def tokenizer(folder: Path) -> None:
    """Write a tokenizer of letters, each alone, with the start and the end that the tiny CLIP knows."""
    folder.mkdir(parents=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *(f"word{number}" for number in range(46))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    ends["unk_token"] = "<|endoftext|>"
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(ends | kind))


def schedule(folder: Path, kind: str, **keywords: Any) -> None:
    """Write a scheduler."""
    folder.mkdir(parents=True)
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **keywords}))


def index(folder: Path, kind: str, ours: dict[str, str], texts: dict[str, str] | None = None, **more: Any) -> None:
    """Write what a pipeline is made of."""
    parts = {name: ["diffusers", word] for name, word in ours.items()}
    parts |= {name: ["transformers", word] for name, word in (texts or {}).items()}
    if kind == "StableDiffusionPipeline":
        parts |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **parts, **more}))
