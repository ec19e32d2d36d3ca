"""Folders as diffusers writes them for whole pipelines, of tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import tokenizers

from diffusion_jax.nets import t5 as nets_t5
from diffusion_jax.pretrained.rules import export
from diffusion_jax.pretrained.t5 import GATED
from tests.pretrained.folders import CLIP_TEXT, REFERENCE, write

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


def stable_diffusion_xl(folder: Path, scheduler: str = "EulerDiscreteScheduler", **changes: Any) -> Path:
    """Write SDXL as small as can be, but for its U-Net, which is Stable Diffusion's."""
    encoders(folder)
    for part, model in (("unet", "unet_sd15"), ("vae", "vae_sd")):
        shutil.copytree(MODELS / model, folder / part)
    schedule(folder / "scheduler", scheduler, **{**STABLE_DIFFUSION, "steps_offset": 1, **changes})
    kinds = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": scheduler}
    texts = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    texts |= {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    index(folder, "StableDiffusionXLPipeline", kinds, texts, force_zeros_for_empty_prompt=True)
    return folder


def stable_diffusion_3(folder: Path, scheduler: str = "FlowMatchEulerDiscreteScheduler", **changes: Any) -> Path:
    """Write Stable Diffusion 3 as small as can be, but for its transformer, which does not fit what reads prompts."""
    encoders(folder, t5="_3", width=48)
    _flow(folder, "sd3", scheduler, {"shift": 3.0, **changes})
    kinds = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL", "scheduler": scheduler}
    texts = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5TokenizerFast"}
    texts |= {f"text_encoder{end}": "CLIPTextModelWithProjection" for end in ("", "_2")}
    index(folder, "StableDiffusion3Pipeline", kinds, texts | {"text_encoder_3": "T5EncoderModel"})
    return folder


def stable_diffusion_3_clips(folder: Path, scheduler: str = "FlowMatchEulerDiscreteScheduler", **changes: Any) -> Path:
    """Write it without its T5."""
    stable_diffusion_3(folder, scheduler, **changes)
    path = folder / "model_index.json"
    left = ("text_encoder_3", "tokenizer_3")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: [None, None] for key in left}))
    for part in left:
        shutil.rmtree(folder / part)
    return folder


def flux(folder: Path, scheduler: str = "FlowMatchEulerDiscreteScheduler", **changes: Any) -> Path:
    """Write Flux as small as can be, but for its transformer, which does not fit what reads prompts."""
    encoders(folder, t5="_2", width=24)
    _flow(folder, "flux_schnell", scheduler, {"shift": 3.0, "use_dynamic_shifting": True, **changes})
    kinds = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL", "scheduler": scheduler}
    texts = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"}
    texts |= {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
    index(folder, "FluxPipeline", kinds, texts)
    return folder


def flux_dev(folder: Path, scheduler: str = "FlowMatchEulerDiscreteScheduler", **changes: Any) -> Path:
    """Write Flux as it is where guidance was distilled."""
    flux(folder, scheduler, **changes)
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_embeds": True}))
    return folder


def _flow(folder, model, scheduler, keywords):
    for part, name in (("transformer", model), ("vae", "vae_sd")):
        shutil.copytree(MODELS / name, folder / part)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift_factor": 0.1}))
    schedule(folder / "scheduler", scheduler, **keywords)


def encoders(folder: Path, *, t5: str = "", width: int = 48) -> Path:
    """Write two tiny CLIPs, which project, and a T5 of a width by the name's ending, if any."""
    weights = safetensors.numpy.load_file(CLIP_TEXT / "model.safetensors")
    weights["text_projection.weight"] = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    config = json.loads((CLIP_TEXT / "config.json").read_text()) | {"architectures": ["CLIPTextModelWithProjection"]}
    for end in ("", "_2"):
        write(folder / f"text_encoder{end}", config, weights)
        tokenizer(folder / f"tokenizer{end}")
    if t5:
        random_t5(folder, t5, width)
    return folder


def random_t5(folder: Path, end: str, width: int) -> None:
    """Write a T5 with random weights, whose pieces are letters."""
    config = json.loads((MODELS / "t5_encoder" / "config.json").read_text()) | {"d_model": width}
    numbers = {"width": width, "depth": config["num_layers"], "heads": config["num_heads"], "head_width": 8}
    network = nets_t5.t5(vocabulary=100, hidden=48, buckets=8, reach=12, **numbers)
    params = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    shutil.rmtree(folder / f"text_encoder{end}", ignore_errors=True)
    write(folder / f"text_encoder{end}", config, export(GATED, params))
    shutil.rmtree(folder / f"tokenizer{end}", ignore_errors=True)
    t5_tokenizer(folder / f"tokenizer{end}")


def t5_tokenizer(folder: Path) -> None:
    """Write a T5's tokenizer, whose pieces are letters."""
    model = tokenizers.models.Unigram(
        [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", "\u2581", *LETTERS)], unk_id=2
    )
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    ends = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "T5TokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(ends))


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
