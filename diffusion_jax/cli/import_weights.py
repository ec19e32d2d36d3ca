"""Make a run of someone else's model, to be sampled, measured and trained like one of our own.

    python -m diffusion_jax import_weights --from stable-diffusion-v1-5 --to runs/sd15
    python -m diffusion_jax import_weights --from ddpm-cifar10-32 --to runs/ddpm --dtype bfloat16
    python -m diffusion_jax sample --workdir runs/sd15 --config.captions="('a red cube on a table',)" \\
        --config.negative="blurry" --config.guidance.scale=7.5 --config.size="(512, 768)"

--from FOLDER      what diffusers writes: a pipeline with its model_index.json, or a network with its config.json
--to WORKDIR       the folder of the run, which must not hold one yet
--dtype NAME       what the network computes, and is kept, in: float32 or bfloat16
--variant NAME     of the files of weights, as fp16

Nothing is downloaded, and no pickled code is run. The network's parameters are written to WORKDIR; the autoencoder and
what reads prompts stay in FOLDER, of which the config has the paths and hashes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from diffusion_jax.cli import arguments
from diffusion_jax.imported import read_imported, write_imported
from diffusion_jax.nets.network import count

_OPTIONS = {"from": "", "to": "", "dtype": "float32", "variant": ""}


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the folder; return the job that writes the run."""
    asked = arguments.options(argv, _OPTIONS)
    if not asked["from"] or not asked["to"]:
        raise ValueError("from where to where? Give --from and --to, as in --from stable-diffusion --to runs/sd.")
    workdir = Path(asked["to"])
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--to {workdir} is a file; it must be a folder, or not be there yet.")
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir} holds a run already; give another --to.")
    imported = read_imported(asked["from"], dtype=asked["dtype"], variant=asked["variant"])

    def job():
        write_imported(imported, workdir)
        print(f"wrote a run of {count(imported.params) / 1e6:.2f} million parameters to {workdir}")

    return job
