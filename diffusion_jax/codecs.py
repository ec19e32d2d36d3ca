"""The autoencoder whose latents are diffused, by its name in a config: how samples become images, and images data.

Its weights are other people's, so they lie where they were and not in a run's checkpoints. They are read when they are
first needed, once in a process, and are arguments of whatever is compiled with them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffusion_jax.denoisers.latent import Latents, latents
from diffusion_jax.naming import choose
from diffusion_jax.nets.checks import dtype_of
from diffusion_jax.nets.vae import Posterior, mode
from diffusion_jax.pretrained.held import check, held
from diffusion_jax.pretrained.tensors import of_config, read_config
from diffusion_jax.pretrained.vae import complete, load_vae
from diffusion_jax.pretrained.vq import load_vq
from diffusion_jax.types import Params


class Codec(NamedTuple):
    """A pixel of the latents is `factor` by `factor` pixels of an image of `channels`.

    `params()` reads the weights, and `ways(params)` gives the maps between images in [-1, 1] and what is diffused.
    `check()` refuses weights that cannot be read, or are not those that they were.
    """

    factor: int
    channels: int
    params: Callable[[], Params]
    ways: Callable[[Params], Latents]
    check: Callable[[], None]


def make_codec(spec: Any) -> Codec | None:
    """Build what `latent` names in a config; None is for data that are diffused as they are."""
    return choose(CODECS, spec, "latent")


def none() -> None:
    """Diffuse the data as they are."""


def vae(*, folder: str, hash: str = "", dtype: str = "float32", variant: str = "", offload: bool = False) -> Codec:
    """A variational autoencoder in a folder of diffusers; an image's latents are the mode of its posterior."""
    return _codec(load_vae, ("AutoencoderKL",), folder, hash, {"dtype": dtype, "variant": variant, "offload": offload})


def vq(*, folder: str, hash: str = "", dtype: str = "float32", variant: str = "", offload: bool = False) -> Codec:
    """An autoencoder with a codebook in a folder of diffusers; what is diffused is not quantised."""
    return _codec(load_vq, ("VQModel",), folder, hash, {"dtype": dtype, "variant": variant, "offload": offload})


def _codec(load, kinds, folder, known, how):
    config = complete(read_config(folder, kinds, "latent"))
    dtype_of("the autoencoder", how["dtype"])

    def network():
        return held(load, folder, known=known, **how)

    def ways(params):
        read = network()

        def encode(x):
            z = read.encode(params, x)
            return mode(z) if isinstance(z, Posterior) else z

        return latents(encode, lambda z: read.decode(params, z), mean=read.mean, std=read.std)

    def checked():
        check(load, folder, known=known, dtype=how["dtype"], variant=how["variant"])

    with of_config(folder):
        factor = 2 ** (len(config["block_out_channels"]) - 1)
    return Codec(factor, config["in_channels"], lambda: network().params, ways, checked)


CODECS = {"none": none, "vae": vae, "vq": vq}
