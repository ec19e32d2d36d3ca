"""Draw samples from a trained model.

    python -m diffusion_jax sample --workdir runs/quickstart
    python -m diffusion_jax sample --workdir runs/quickstart --out runs/crosses --config.count=16 --config.label=9
    python -m diffusion_jax sample --workdir runs/quickstart --config.solver=heun --config.steps=20 --config.seed=7 \\
        --config.guidance="{'name': 'classifier_free', 'scale': 3.0}"

--workdir DIR          the folder of the run
--out DIR              where the samples go; by default DIR/samples
--step N               the checkpoint, by default the newest
--config.KEY=VALUE     change the run's `sampling`: count, batch_size, seed, label, captions, negative, size, hints,
                       steps, solver, grid, guidance, and average: a name of training.averages, `params`, or a post-hoc
                       width, as 0.1

Sample i depends on the seed and i alone, not on the batch size or the devices. The folder receives samples.npz
(`samples`, `labels` or `captions`), samples.png, and images as 000000.png, 000001.png, ...
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.cli import arguments
from diffusion_jax.data import make_source
from diffusion_jax.data.pixels import to_uint8
from diffusion_jax.files import check_folder, replacing
from diffusion_jax.samples import check_sampling, draw, picture
from diffusion_jax.trained import Trained, load
from diffusion_jax.truth import judge


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request and read the model; return the job."""
    folder, out, step, sampling = arguments.read_sampling(argv)
    out = out or folder / "samples"
    check_folder(out, "--out")
    model = load(folder, sampling=sampling, step=step)
    check_sampling(model)
    return lambda: _run(model, out)


def _run(model: Trained, out: Path) -> None:
    drawn = draw(model)
    source = make_source(model.config.data) if model.config.data.name in ("density", "shapes") else None
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "samples.npz") as file:
        np.savez(file, **{name: value for name, value in drawn._asdict().items() if value is not None})
    with replacing(out / "samples.png") as file:
        Image.fromarray(picture(drawn, model.info, source=source)).save(file, format="png")
    samples = drawn.samples
    if samples.ndim == 4 and samples.shape[-1] in (1, 3):
        for number, image in enumerate(to_uint8(samples)):
            with replacing(out / f"{number:06d}.png") as file:
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, format="png")
    for name, value in judge(source, drawn).items():
        print(f"{name:<24} {value:.4g}")
    print(f"wrote {len(samples)} samples of step {model.step} to {out}")
