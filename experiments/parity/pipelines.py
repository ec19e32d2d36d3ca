"""Whole loops of diffusers against ours, on tiny random models: the same folder, the same prompts, the same noise.

A pipeline's folder is imported as `import_weights` does, so that what is compared is all that a person would get:
tokens, text encoder, network, guidance, grid, solver and decoder. Run it where diffusers and transformers are with

    python -m experiments.parity.pipelines

which prints the largest difference between images, whose values reach 1 and more, after all steps.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import changed
from diffusion_jax.experiment import make_sampling
from diffusion_jax.imported import read_imported, write_imported
from diffusion_jax.process.forward import prior
from diffusion_jax.process.noise import example_keys
from diffusion_jax.sampler import conditions, diffused_shape, make_sampler, sized
from diffusion_jax.trained import Trained, load
from tests import pipelines

PROMPTS, NEGATIVE, STEPS, SCALE = ["a cat", "two dogs and more words than there is room for"], "bad", 10, 7.5


class Case(NamedTuple):
    """A pipeline, its scheduler with keywords, and how far ours may be from theirs."""

    pipeline: str
    scheduler: str
    keywords: dict[str, Any]
    size: tuple[int, ...] = ()


LEADING, LINSPACE = ({"timestep_spacing": spacing} for spacing in ("leading", "linspace"))
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}

XL = {
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}

CASES = {
    "stable diffusion, ddim": Case("stable_diffusion", "DDIMScheduler", {}),
    "stable diffusion, ddim, not square": Case("stable_diffusion", "DDIMScheduler", {}, (16, 24)),
    "stable diffusion, ddim, trailing": Case("stable_diffusion", "DDIMScheduler", {"timestep_spacing": "trailing"}),
    "stable diffusion, ddim, zero terminal SNR, v": Case("stable_diffusion", "DDIMScheduler", ZERO),
    "euler, linspace": Case("stable_diffusion", "EulerDiscreteScheduler", LINSPACE),
    "euler, leading": Case("stable_diffusion", "EulerDiscreteScheduler", LEADING),
    "dpm-solver++ 2M": Case("stable_diffusion", "DPMSolverMultistepScheduler", LINSPACE),
    "dpm-solver++ 2M, leading": Case(
        "stable_diffusion", "DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}
    ),
    "unipc": Case("stable_diffusion", "UniPCMultistepScheduler", LINSPACE),
    "heun": Case("stable_diffusion", "HeunDiscreteScheduler", LINSPACE),
    "dit": Case("dit", "DDIMScheduler", {}),
    "dit, dpm-solver++ 2M": Case("dit", "DPMSolverMultistepScheduler", LINSPACE),
    "sdxl, euler": Case("stable_diffusion_xl", "EulerDiscreteScheduler", LEADING),
    "stable diffusion 3": Case("stable_diffusion_3", "FlowMatchEulerDiscreteScheduler", {}),
    "stable diffusion 3, without T5": Case("stable_diffusion_3_clips", "FlowMatchEulerDiscreteScheduler", {}),
    "flux, dev": Case("flux_dev", "FlowMatchEulerDiscreteScheduler", {}, (16, 16)),
    "flux, schnell": Case("flux", "FlowMatchEulerDiscreteScheduler", {}, (16, 16)),
    "lms": Case("stable_diffusion", "LMSDiscreteScheduler", LEADING),
}


def both(case: Case, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of ours and of theirs, NHWC; `folder` receives the pipeline and the run."""
    source = getattr(pipelines, case.pipeline)(folder / "pipeline", case.scheduler, **case.keywords)
    if case.pipeline in RANDOM:
        RANDOM[case.pipeline](source)
    write_imported(read_imported(source), folder / "run")
    model = load(folder / "run")
    asked = {"captions": tuple(PROMPTS), "negative": NEGATIVE, "steps": STEPS, "size": case.size}
    config = model.config.copy_and_resolve_references()
    if "scale" in config.sampling.guidance:
        asked["guidance.scale"] = SCALE
    config.sampling = changed(config.sampling, asked)
    model = model._replace(config=config)
    x, ours = drawn(model)
    return ours, THEIRS[case.pipeline](source, model, x)


def drawn(model: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise that the samples of a model begin with, and the samples."""
    indices, key = jnp.arange(len(PROMPTS)), jax.random.key(model.config.sampling.seed)
    schedule = sized(model.config, model.model, model.info).schedule
    times = make_sampling(model.config, schedule).times
    zeros = jnp.zeros((len(PROMPTS), *diffused_shape(model.config, model.model, model.info)))
    x = prior(schedule, example_keys(jax.random.split(key)[0], indices), zeros, times[0])
    draw = make_sampler(model.config, model.model, model.info)
    told = conditions(model.config, model.model, np.asarray(indices))
    return np.asarray(x), np.asarray(draw(model.params, key, indices, told))


def stable_diffusion(source: Path, model: Trained, x: np.ndarray) -> np.ndarray:
    """Run their StableDiffusionPipeline from our noise."""
    diffusers = import_module("diffusers")
    return _of_latents(diffusers.StableDiffusionPipeline.from_pretrained(source, safety_checker=None), model, x)


def stable_diffusion_xl(source: Path, model: Trained, x: np.ndarray) -> np.ndarray:
    """Run their StableDiffusionXLPipeline from our noise."""
    diffusers = import_module("diffusers")
    pipe: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(source, add_watermarker=False)
    return _of_latents(pipe, model, x)


def stable_diffusion_3(source: Path, model: Trained, x: np.ndarray) -> np.ndarray:
    """Run their StableDiffusion3Pipeline from our noise; left alone it would shift the last of its sigmas twice."""
    diffusers = import_module("diffusers")
    index = json.loads((source / "model_index.json").read_text())
    left = {name: None for name, part in index.items() if part == [None, None]}  # which theirs wants to be told
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(source, **left)
    return _of_latents(pipe, model, x, sigmas=list(np.linspace(1, 1 / STEPS, STEPS)))


def flux(source: Path, model: Trained, x: np.ndarray) -> np.ndarray:
    """Run their FluxPipeline from our noise, which it takes in patches, with guidance by a number or by none."""
    diffusers = import_module("diffusers")
    pipe: Any = diffusers.FluxPipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    batch, height, width, channels = x.shape
    latents = pipe._pack_latents(_torch(x), batch, channels, height, width)
    length = model.config.text.length
    told = {"guidance_scale": SCALE, "latents": latents, "output_type": "latent", "max_sequence_length": length}
    size = {"height": 2 * height, "width": 2 * width}
    with import_module("torch").no_grad():
        drawn = pipe(PROMPTS, num_inference_steps=STEPS, **told, **size).images
        drawn = pipe._unpack_latents(drawn, *size.values(), pipe.vae_scale_factor)
        return _decoded(pipe, drawn)


def dit(source: Path, model: Trained, x: np.ndarray) -> np.ndarray:
    """Run their DiTPipeline from our noise, which it does not take: it is put where theirs is drawn."""
    diffusers = import_module("diffusers")
    pipe: Any = diffusers.DiTPipeline.from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    where: Any = import_module(type(pipe).__module__)
    decode, images = pipe.vae.decode, []

    def kept(z):
        images.append(decode(z))
        return images[-1]

    draw, where.randn_tensor, pipe.vae.decode = where.randn_tensor, lambda **_: _torch(x), kept
    try:
        pipe(list(range(len(x))), num_inference_steps=STEPS, guidance_scale=SCALE, output_type="np")
    finally:
        where.randn_tensor = draw
    return _numpy(images[0].sample)


def with_a_thousand_classes(source: Path) -> None:
    """Give a tiny DiT as many classes as their pipeline takes for granted, and random weights."""
    diffusers, torch = map(import_module, ("diffusers", "torch"))
    torch.manual_seed(0)
    config = diffusers.DiTTransformer2DModel.load_config(source / "transformer") | {"num_embeds_ada_norm": 1000}
    network = diffusers.DiTTransformer2DModel.from_config(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # or what follows the zeros of adaLN-zero would count for nothing
    network.save_pretrained(source / "transformer")


def as_wide_as_its_readers(source: Path, **changes: Any) -> None:
    """Give a tiny pipeline of the straight path a transformer that fits its readers of prompts, with random weights."""
    diffusers, torch = map(import_module, ("diffusers", "torch"))
    torch.manual_seed(0)
    found = json.loads((source / "transformer" / "config.json").read_text())
    kind = getattr(diffusers, found["_class_name"])
    widths = (48, 32) if "SD3" in found["_class_name"] else (24, 24)
    config = found | dict(zip(("joint_attention_dim", "pooled_projection_dim"), widths, strict=True)) | changes
    kind.from_config(config).save_pretrained(source / "transformer")


def that_is_told_sizes(source: Path) -> None:
    """Give a tiny pipeline a U-Net of SDXL's kind with random weights."""
    diffusers, torch = map(import_module, ("diffusers", "torch"))
    torch.manual_seed(0)
    config = diffusers.UNet2DConditionModel.load_config(source / "unet") | XL
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(source / "unet")


def _of_latents(pipe, model, x, **more):
    """Call a pipeline that takes latents, and decode what it makes of them."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.set_timesteps(STEPS)
    scale = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    if scale != 1:  # theirs begins at x / alpha, and multiplies unit noise
        times = make_sampling(model.config, model.model.schedule).times
        scale *= float(model.model.schedule.alpha(times[0]))
    height, width = (side * 2 for side in x.shape[1:3])
    with import_module("torch").no_grad():
        latents = pipe(
            PROMPTS, negative_prompt=[NEGATIVE] * len(PROMPTS), num_inference_steps=STEPS, guidance_scale=SCALE,
            height=height, width=width, latents=_torch(x) / scale, output_type="latent", **more,
        ).images  # fmt: skip
        return _decoded(pipe, latents)


def _decoded(pipe, latents):
    config = pipe.vae.config
    return _numpy(pipe.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample)


def _torch(x):
    return import_module("torch").tensor(np.moveaxis(x, -1, 1).copy())


def _numpy(x) -> np.ndarray:
    return np.moveaxis(x.numpy(), 1, -1)


THEIRS: dict[str, Callable[[Path, Trained, np.ndarray], np.ndarray]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "stable_diffusion_3": stable_diffusion_3,
    "stable_diffusion_3_clips": stable_diffusion_3,
    "flux": flux,
    "flux_dev": flux,
    "dit": dit,
}


# What networks are drawn at random where the reference has none that fit.
RANDOM: dict[str, Callable[[Path], None]] = {
    "dit": with_a_thousand_classes,
    "stable_diffusion_xl": that_is_told_sizes,
    "stable_diffusion_3": as_wide_as_its_readers,
    "stable_diffusion_3_clips": as_wide_as_its_readers,
    "flux": as_wide_as_its_readers,
    "flux_dev": as_wide_as_its_readers,
}


def main() -> None:
    """Print a table; words on the command line choose among the cases."""
    for library in map(import_module, ("diffusers.utils.logging", "transformers.utils.logging")):
        library.set_verbosity_error()
        library.disable_progress_bar()
    print("| loop | largest error | largest value |\n| --- | ---: | ---: |")
    chosen = {name: case for name, case in CASES.items() if all(word in name for word in sys.argv[1:])}
    for name, case in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = both(case, Path(folder))
        print(f"| {name} | {np.abs(ours - theirs).max():.1e} | {np.abs(theirs).max():.2f} |", flush=True)


if __name__ == "__main__":
    main()
