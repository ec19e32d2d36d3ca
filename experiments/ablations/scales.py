"""How large an ablation is: the same question in minutes on two cores, on CIFAR-10, and on ImageNet.

The mode of an ablation file chooses: `FILE` is the quick one, `FILE:smoke` only shows that it runs, and `FILE:cifar10`
and `FILE:imagenet` name the config of a data set, its length, and metrics that can be compared with published ones.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.ablation.grid import Grid, product, seeds
from diffusion_jax.ablation.question import Ablation


class Scale(NamedTuple):
    """A config, what replaces its values in every arm, and how every arm is measured."""

    config: str
    fixed: Mapping[str, Any]
    metrics: str
    samples: int
    features: Any = "pixels"
    seeds: int = 3


QUIET = {"training.tensorboard": False}
POINTS = Scale(
    "configs/toy_2d.py",
    QUIET
    | {
        "training.steps": 600,
        "training.rate": {"name": "cosine", "peak": 3e-3, "steps": 600, "warmup": 50, "end": 0.0},
        "training.averages": {"ema": {"name": "warmup", "decay": 0.99}},
    },
    "sliced_distance,surplus_nats",
    2000,
)
IMAGES = Scale("configs/quickstart.py", QUIET | {"training.sample_every": 0}, "agreement,fid", 1000)
CIFAR10 = Scale("configs/cifar10_flow.py", {"training.steps": 200_000}, "fid,kid", 50_000, "inception")
BY_CLASS = {
    "cond": ("label",),
    "transforms": ({"name": "to_unit"}, {"name": "flip", "rate": 0.5}, {"name": "drop_label", "rate": 0.1}),
}
IMAGENET = Scale("configs/imagenet256_sit.py", {"training.steps": 400_000}, "fid", 50_000, "inception", 1)


def smoke(scale: Scale) -> Scale:
    """Make it as small as it can be."""
    small = {"training.steps": 2, "training.batch_size": 16, "training.log_every": 1}
    return scale._replace(config=f"{scale.config}:smoke", fixed={**scale.fixed, **small}, samples=40, seeds=2)


def of_points(mode: str) -> Scale:
    """Return the scale of a question about densities."""
    return _chosen(mode, {"": POINTS, "smoke": smoke(POINTS), "cifar10": CIFAR10, "imagenet": IMAGENET})


def of_images(mode: str) -> Scale:
    """Return the scale of a question about images by class."""
    by_class = CIFAR10._replace(fixed={**CIFAR10.fixed, **BY_CLASS})
    return _chosen(mode, {"": IMAGES, "smoke": smoke(IMAGES), "cifar10": by_class, "imagenet": IMAGENET})


def asked(question: str, grid: Grid, scale: Scale) -> Ablation:
    """Ask a question at a scale: its grid, for each of the scale's seeds."""
    return Ablation(
        question, scale.config, product(grid, seeds(scale.seeds)), scale.metrics, scale.fixed, scale.samples,
        scale.features,
    )  # fmt: skip


def _chosen(mode, scales):
    if mode not in scales:
        raise ValueError(f"unknown mode '{mode}' of an ablation. Known: {', '.join(filter(None, scales))}.")
    return scales[mode]
