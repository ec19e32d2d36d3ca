"""Measure the bits per dimension of a trained model on data.

    python -m diffusion_jax likelihood --workdir runs/cifar10_ddpmpp_vp --data tfds:cifar10:test --count 10000
    python -m diffusion_jax likelihood --workdir runs/quickstart --way bound --count 256

--workdir DIR            the folder of the run
--way flow|bound         the likelihood of the probability flow, by default, or the variational bound
--data D                 tfds:NAME:SPLIT, an npz or array_record file, or a folder of images; by default what the run
                         was trained on
--count N                so many examples from the first on, by default 1000
--dequantization NAME    uniform, by default, or truncated_normal: the noise that the flow's integers get
--steps N                of the flow's ODE, or levels drawn by the bound, by default 100
--probes N               of the flow's divergence, by default 1; 0 computes it exactly
--step N                 the checkpoint, by default the newest
--config.average=NAME    whose parameters

The result is a card, kept in the folder `evaluations/` of the run; its interval is that of the mean over the data.
"""

from collections.abc import Callable, Sequence

from diffusion_jax import bits
from diffusion_jax.cli import arguments


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request and read the model; return the job."""
    given = arguments.read_likelihood(argv)
    way = bits.Way(**{key: given.pop(key) for key in ("name", "dequantization", "steps", "probes") if key in given})
    job = bits.prepare(**given, way=way)
    return lambda: print(job())
