"""Make a run of someone else's model, to be sampled, measured and trained like one of our own.

    python -m diffusion_jax import_weights --from stable-diffusion-v1-5 --to runs/sd15
    python -m diffusion_jax import_weights --from ddpm-cifar10-32 --to runs/ddpm --dtype bfloat16
    python -m diffusion_jax import_weights --from v1-5-pruned.safetensors --tokenizer sd15/tokenizer --to runs/sd15
    python -m diffusion_jax sample --workdir runs/sd15 --config.captions="('a red cube on a table',)" \\
        --config.negative="blurry" --config.guidance.scale=7.5 --config.size="(512, 768)"

--from SOURCE      a folder that diffusers wrote, of a pipeline or of a network; a repository of huggingface.co; or a
                   file: of Stable Diffusion 1, 2, XL or 3, of EDM (.pkl), or of DiT (.pt)
--to WORKDIR       the folder of the run, which must not hold one yet
--dtype NAME       what the network computes, and is kept, in: float32 or bfloat16
--text_dtype NAME  the same of what reads prompts, and
--latent_dtype NAME of what decodes latents; both float32 unless said
--offload          keep both in the host's memory, and on the device only while they are used
--variant NAME     of the files of weights, as fp16
--tokenizer FOLDER of a single file, which holds none: CLIP's, or of XL a folder with `tokenizer` and `tokenizer_2`, and
                   of 3 one with `tokenizer_3` besides
--prediction NAME  of a single file, which does not say: eps or v; it is needed of version 2 alone

No pickled code is run. The network's parameters are written to WORKDIR; the autoencoder and what reads prompts stay
where they are, of which the config has the paths and hashes. Of a single file they are written to WORKDIR/parts.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from diffusion_jax.cli import arguments
from diffusion_jax.files import check_folder
from diffusion_jax.imported import read_imported, write_imported
from diffusion_jax.nets.network import count

_DTYPES = {"dtype": "float32", "text_dtype": "float32", "latent_dtype": "float32"}
_OPTIONS = {"from": "", "to": "", **_DTYPES, "offload": False, "variant": "", "tokenizer": "", "prediction": ""}


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read what is imported, whose parts are written if they were one file; return the job that writes the run."""
    asked = arguments.options(argv, _OPTIONS)
    if not asked["from"] or not asked["to"]:
        raise ValueError("from where to where? Give --from and --to, as in --from stable-diffusion --to runs/sd.")
    workdir = Path(asked["to"])
    check_folder(workdir, "--to")
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir} holds a run already; give another --to.")
    parts, made = workdir / "parts", not workdir.exists()
    if not made and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty; give another --to, or remove what is there.")
    options = {name: value for name, value in asked.items() if name not in ("from", "to")}
    try:
        imported = read_imported(asked["from"], parts=parts.absolute(), **options)
    except BaseException:
        shutil.rmtree(workdir if made else parts, ignore_errors=True)
        raise

    def job():
        try:
            write_imported(imported, workdir)
        except BaseException:
            shutil.rmtree(workdir if made else parts, ignore_errors=True)
            raise
        print(f"wrote a run of {count(imported.params) / 1e6:.2f} million parameters to {workdir}")

    return job
