"""Does the path of the noise or what the network predicts matter more?

    python -m diffusion_jax sweep experiments/ablations/schedules.py --backend local --parallel 2 --out runs/schedules

All arms share the network, its number of steps, the optimizer, uniform times and the way of sampling. Quick: a density
in the plane, where samples and likelihood are held against the truth.
"""

from diffusion_jax.ablation.grid import param, product
from diffusion_jax.ablation.question import Ablation
from experiments.ablations.scales import asked, of_points


def get_ablation(mode: str = "") -> Ablation:
    """Return the question at the scale that the mode names."""
    paths = param("schedule", ("linear_beta", "cosine", "rectified"))
    predictions = param("loss.prediction", ("eps", "v", "velocity"))
    question = "Does the path of the noise or what the network predicts matter more?"
    return asked(question, product(paths, predictions), of_points(mode))
