"""Encode a data set once, to train on its latents.

    python -m diffusion_jax encode --workdir runs/sd15 --side 512 --out photos.array_record \\
        --data "{'name': 'folder', 'path': 'photos'}"
    python -m diffusion_jax train --config configs/finetune.py --workdir runs/photos \\
        --config.start.folder=runs/sd15 --config.data.path=photos.array_record

--workdir DIR       the run whose autoencoder, its config's `latent`, is taken
--latent FOLDER     or an autoencoder's folder as diffusers writes it
--data ENTRY        a source, as `data` is in a config
--side N            images are shrunk and cropped to N by N
--out FILE          an .array_record, or an .npz that is held in memory
--mirrored          add the mirror image of every image
--hint NAME         write an image beside the latents that steers a control network: edges, mask, x itself, or the hint
                    that a source of images has, as `folder` with `hints`; edges are found where the source has none
--batch_size N      images that are encoded at once, by default 16

What is written are examples with their labels and captions, and beside them the statistics of their latents.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.cli import arguments
from diffusion_jax.codecs import make_codec
from diffusion_jax.data import make_source
from diffusion_jax.encoded import Encoding, encode, hinted, images
from diffusion_jax.workdir import plain, read_config

_OPTIONS = {
    "workdir": "",
    "latent": "",
    "data": "",
    "side": 0,
    "out": "",
    "mirrored": False,
    "batch_size": 16,
    "hint": "",
}


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request and find the data; return the job."""
    asked = arguments.options(argv, _OPTIONS)
    for name in ("data", "side", "out", "batch_size"):
        if not asked[name]:
            raise ValueError(f"encode: give --{name}; `encode --help` shows what it is.")
    side, out = asked["side"], Path(asked["out"]).expanduser()
    for name in ("side", "batch_size"):
        if asked[name] < 1:
            raise ValueError(f"encode: --{name} is {asked[name]}; it must be 1 or more.")
    if out.suffix not in (".array_record", ".npz"):
        raise ValueError(f"encode: --out is {out}; it must end in .array_record or .npz.")
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"encode: --out is {out}; it must be a file in a folder that is there; make {out.parent}.")
    if bool(asked["workdir"]) == bool(asked["latent"]):
        raise ValueError("which autoencoder? Give --workdir of a run, or --latent with a folder, and not both.")
    latent: Any = {"name": "vae", "folder": asked["latent"]}
    if asked["workdir"]:
        config: Any = read_config(Path(asked["workdir"]))
        latent = config.latent
    codec = make_codec(latent)
    if codec is None:
        raise ValueError(f"the run in {asked['workdir']} has no autoencoder: its config.latent is none. Give --latent.")
    data = arguments.entry(asked["data"])
    source = make_source(data)
    crop, unit = {"name": "adm_crop", "side": side}, {"name": "to_unit"}
    transforms = (crop, *hinted(asked["hint"], source.info, unit)) if asked["hint"] else (crop, unit)
    encoding = Encoding(source, transforms, codec, asked["batch_size"], asked["mirrored"])
    images(encoding)  # says its errors, as does the next
    codec.check()

    def job():
        noted = encode(encoding, out, latent=plain(latent), data=plain(data), side=side, hint=asked["hint"])
        for name in ("mean", "std"):
            print(f"{name:<6}", *(f"{value:8.3f}" for value in noted[name]))
        print(f"wrote {noted['count']} examples to {out}")

    return job
