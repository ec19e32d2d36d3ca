"""How much guidance, and at which noise levels?

    python -m diffusion_jax sweep experiments/ablations/guidance.py --backend local --parallel 2 --out runs/guidance

One run a seed. Guidance throughout is held against guidance in the middle of the path alone (Kynkaanniemi et al. 2024);
precision and recall tell what it gains from what it costs.
"""

from diffusion_jax.ablation.grid import chain, param
from diffusion_jax.ablation.question import Ablation
from experiments.ablations.scales import asked, of_images


def get_ablation(mode: str = "") -> Ablation:
    """Return the question at the scale that the mode names."""
    scale = of_images(mode)
    whole = param("sampling.guidance", [_guided(strength) for strength in (1.0, 1.5, 2.0, 3.0, 5.0)])
    middle = param("sampling.guidance", [_guided(strength, (0.2, 0.8)) for strength in (2.0, 3.0, 5.0)])
    grid = chain(whole, middle)
    return asked(
        "How much guidance, and at which noise levels?",
        grid,
        scale._replace(metrics=f"{scale.metrics},precision_recall"),
    )


def _guided(strength, interval=None):
    return {"name": "classifier_free", "scale": strength, "interval": interval}
