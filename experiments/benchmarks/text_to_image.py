"""A whole text-to-image loop of ours and of diffusers, from prompts to pixels, on one folder of Stable Diffusion 1.5.

    pip install -e '.[peers]'
    python -m experiments.benchmarks.text_to_image --rounds 5
    python -m experiments.benchmarks.text_to_image --small --side 64 --steps 2 --dtype float32

The folder has networks of that size with random weights, so what is timed is real and what is drawn is not. Both sides
take turns in one process, with the same prompts, guidance, solver and number of steps, in `--dtype` throughout, on the
GPU if there is one; what is compared is the ratio within a round. Ours is what `import_weights` and `sample` run, and
compiles once before; of diffusers the U-Net and the decoder are compiled too with `--compiled`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import changed
from diffusion_jax.imported import read_imported, write_imported
from diffusion_jax.sampler import conditions, make_sampler
from diffusion_jax.trained import load
from tests import pipelines

PROMPTS = ("a cat", "two dogs", "a house by the sea", "an owl")
UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {
    "unet": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32},
    "vae": {"block_out_channels": (32, 32, 64, 64)},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def pipeline(folder: Path, small: dict[str, dict[str, Any]]) -> None:
    """Let diffusers write a pipeline with random weights."""
    diffusers, transformers = (cast(Any, import_module(peer)) for peer in ("diffusers", "transformers"))
    pipelines.tokenizer(folder / "tokenizer")
    text = transformers.CLIPTextConfig(**{**TEXT, **small.get("text", {})}, eos_token_id=49407, bos_token_id=49406)
    whole = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**{**VAE, **small.get("vae", {})}),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=diffusers.UNet2DConditionModel(**{**UNET, **small.get("unet", {})}),
        scheduler=diffusers.DDIMScheduler(
            **pipelines.STABLE_DIFFUSION, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    whole.save_pretrained(folder)


def ours(folder: Path, run: Path, options: argparse.Namespace) -> Callable[[], np.ndarray]:
    """Import the folder and return draw(): a batch of images."""
    beside = {"text_dtype": options.dtype, "latent_dtype": options.dtype}
    write_imported(read_imported(folder, dtype=options.dtype, **beside), run)
    model = load(run)
    asked = {"captions": PROMPTS, "steps": options.steps, "size": (options.side, options.side)}
    asked |= {"guidance.scale": 7.5, "solver": "ddim"}
    config = model.config.copy_and_resolve_references()
    config.sampling = changed(config.sampling, asked)
    model = model._replace(config=config)
    sampler, indices = make_sampler(config, model.model, model.info), jnp.arange(options.batch)
    params = jax.device_put(model.params)

    def draw():
        told = conditions(config, model.model, np.arange(options.batch))
        return np.asarray(sampler(params, jax.random.key(0), indices, told))

    return draw


def theirs(folder: Path, options: argparse.Namespace) -> Callable[[], np.ndarray]:
    """Return the same of diffusers' pipeline."""
    diffusers, torch = (cast(Any, import_module(peer)) for peer in ("diffusers", "torch"))
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")  # where there is TF32, as XLA multiplies there
    dtype = getattr(torch, options.dtype)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None).to(device)
    pipe.set_progress_bar_config(disable=True)
    if options.compiled:
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(options.batch)]
    asked = {"num_inference_steps": options.steps, "guidance_scale": 7.5}

    def draw():
        with torch.no_grad():
            return pipe(prompts, height=options.side, width=options.side, output_type="np", **asked).images

    return draw


def main() -> None:
    """Write the folder, let both draw in turn and print seconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="images drawn together")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--compiled", action="store_true", help="diffusers with torch.compile")
    parser.add_argument("--small", action="store_true", help="networks of few channels, to try the benchmark itself")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline(folder / "pipeline", SMALL if options.small else {})
        sides = {"theirs": theirs(folder / "pipeline", options)}
        sides["ours"] = ours(folder / "pipeline", folder / "run", options)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        first = {}
        for number in range(-2, options.rounds):  # the first two compile and warm up
            for side, draw in sides.items():
                begin = time.perf_counter()
                images = draw()
                passed = time.perf_counter() - begin
                assert images.shape == (options.batch, options.side, options.side, 3), images.shape
                if number == -2:
                    first[side] = passed
                if number >= 0:
                    seconds[side].append(passed)
                print(f"{side:<6} {passed:7.2f} s", flush=True)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    found = {side: statistics.median(values) for side, values in seconds.items()}
    print(json.dumps({
        "device": jax.devices()[0].device_kind, "jax": jax.__version__, **vars(options), "seconds": found,
        "first": first, "ratio": statistics.median(ratios), "from": min(ratios), "to": max(ratios),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
