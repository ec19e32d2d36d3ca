"""Compile a config for machines that need not be here, and say whether it fits and what it can reach at most.

    python -m diffusion_jax plan --config configs/imagenet256_dit.py --topology v5e:4x4 --config.training.mesh.fsdp=16
    python -m diffusion_jax plan --config configs/cifar10_edm.py --topology v5p:4x4x4 --work training --nolargest

--config PATH[:MODE]   a config file, and --config.KEY=VALUE as in `train`
--topology NAME        a slice of a TPU pod, as v5e:16x16, v5p:4x4x4, v6e:8x8 or v4:4x4x4, or `local`, the devices here
--work WHAT            `training`, the step; `sampling`, the whole loop on one host; by default both
--nolargest            do not look for the largest batch that fits, which compiles the step two to four times more
--out FILE             keep what was found as JSON

TPUs are compiled for by the package libtpu (pip install 'diffusion_jax[tpu]'), without any. The data need not be here
either, where the config says in `expects` what they are like. What comes out is a bound: the time that the busiest of
arithmetic, memory and network needs at its peak. The exit code is 1 if something does not fit.
"""

import json
from collections.abc import Callable, Sequence

from diffusion_jax.cli import arguments
from diffusion_jax.files import check_file, replacing
from diffusion_jax.launch import plan
from diffusion_jax.launch.absent import devices_of
from diffusion_jax.launch.work import sampling_work, training_work
from diffusion_jax.naming import lookup


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request and build what is to be compiled; return the job."""
    asked = arguments.read_plan(argv)
    kinds = WORK.values() if asked.work == "both" else [lookup(WORK, asked.work, "work")]
    if asked.out is not None:
        check_file(asked.out, "--out")
    devices = devices_of(asked.topology)
    works = [make(asked.config, devices) for make in kinds]

    def job():
        plans = []
        for work in works:
            plans.append(plan.make_plan(work, largest=asked.largest))
            print(plan.told(plans[-1]), flush=True)
        if asked.out is not None:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(asked.out) as file:
                file.write((json.dumps([plan.row(one) for one in plans], indent=1) + "\n").encode())
        if not all(one.found.fits for one in plans):
            raise SystemExit(1)

    return job


WORK = {"training": training_work, "sampling": sampling_work}
