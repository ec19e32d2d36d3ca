"""Does the path of the noise or what the network predicts matter more?

    python -m diffusion_jax sweep experiments/ablations/schedules.py --backend local --parallel 2 --out runs/schedules

All arms share the network, its number of steps, the optimizer, uniform times and the way of sampling. Quick: a density
in the plane, where samples and likelihood are held against the truth.

Quick, 27 runs from 3 seeds in 16 min 31 s on 2 cores (26 November 2026, jax 0.10.2), means with intervals of 95 %:

    what is predicted   path           sliced distance   surplus in nats
    eps                 linear_beta     3.17  +- 0.66    0.248  +- 0.28
    v                   linear_beta     0.137 +- 0.051   0.177  +- 0.075
    velocity            linear_beta     0.150 +- 0.022   0.239  +- 0.21
    eps                 cosine         21.6   +- 6.2     0.264  +- 0.14
    v                   cosine          0.119 +- 0.029   0.0836 +- 0.015
    velocity            cosine          0.120 +- 0.035   0.0884 +- 0.032
    eps                 rectified      31.2   +- 4.2     0.280  +- 0.043
    v                   rectified       0.109 +- 0.089   0.0827 +- 0.0089
    velocity            rectified       0.117 +- 0.081   0.0828 +- 0.074

So what is predicted matters more. In pure noise eps says nothing of the data, and x0 = (x - sigma eps) / alpha divides
its error by an alpha near 0: the less signal a path leaves at its end, the further samples go astray. Predicting v or
the velocity heals it on every path, and between these two no difference is beyond chance.
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
