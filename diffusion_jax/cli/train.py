"""Train a model.

    python -m diffusion_jax train --config configs/quickstart.py --workdir runs/quickstart
    python -m diffusion_jax train --config configs/quickstart.py:smoke --workdir runs/smoke
    python -m diffusion_jax train --config configs/toy_2d.py --workdir runs/toy --config.training.steps=500

--config PATH[:MODE]   a config file; MODE `smoke` makes it small
--workdir DIR          where the run lives; the folder is made if need be
--config.KEY=VALUE     change any value of the config, as --config.training.batch_size=64
--config.KEY=NAME      replace an entry that has a name: data, network, schedule, pace, input, loss, ...
--config.KEY="{'name': 'cosine', 'offset': 0.01}"      the same, with keywords

The same command goes on where the run stopped, for whatever reason, exactly as if it had not. SIGTERM and Ctrl-C save
a checkpoint and end with exit code 75; a second one ends at once. A folder that holds the run of another config is
refused, with the difference. DIR receives metrics.jsonl, TensorBoard's events/, pictures/, checkpoints/, and what made
the run: config.json, run.json, parameters.txt.
"""

import sys
from collections.abc import Callable, Sequence

from diffusion_jax import run
from diffusion_jax.cli import arguments
from diffusion_jax.launch.distributed import join
from diffusion_jax.training.loop import PREEMPTED, Diverged, Stopped


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request and build its parts; return the job."""
    config, workdir = arguments.read(argv)
    join()
    built = run.prepare(config, workdir)

    def job():
        try:
            found = run.carry_out(built)
        except Stopped as stopped:
            print(f"\n{stopped}", file=sys.stderr)
            raise SystemExit(PREEMPTED) from None
        except Diverged as diverged:
            raise SystemExit(f"error: {diverged}") from None
        if built.held is None:
            return  # the first of several processes tells
        for name, value in found.items():
            print(f"{name:<24} {value:.4g}")
        print(f"wrote {workdir}/pictures/samples_{config.training.steps:08d}.png")

    return job
