"""At which noise levels should a network spend its training, and with what weight?

    python -m diffusion_jax sweep experiments/ablations/weightings.py --backend local --parallel 2 --out runs/weightings

A weighting and a density of times together make one weight over log-SNR; arms in which that is the same are pointed
out before they are run. All share the rectified path and what is predicted.
"""

from diffusion_jax.ablation.grid import param, product
from diffusion_jax.ablation.question import Ablation
from experiments.ablations.scales import asked, of_points


def get_ablation(mode: str = "") -> Ablation:
    """Return the question at the scale that the mode names."""
    weightings = param("loss.weighting", ("constant", "sigmoid", {"name": "min_snr", "gamma": 5.0}))
    times = param("loss.times", ("uniform", "logit_normal", "uniform_log_snr"))
    question = "At which noise levels should a network spend its training, and with what weight?"
    return asked(question, product(weightings, times), of_points(mode))
