"""Vector-quantised autoencoders from folders of diffusers (VQModel)."""

from pathlib import Path

from diffusion_jax.nets.vq import vq
from diffusion_jax.pretrained.rules import Call, Put, load
from diffusion_jax.pretrained.tensors import of_config, open_tensors, read_config
from diffusion_jax.pretrained.vae import Autoencoder, complete, example_of, shape_of, statistics, table_of
from diffusion_jax.types import Array


def load_vq(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Autoencoder:
    """Read a folder of diffusers; the network computes, and is kept, in `dtype`, and `encode` does not quantise."""
    silent = {"latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None, "norm_type": "group"}
    config = complete(silent | read_config(folder, ("VQModel",), "load_vq"))
    if config["norm_type"] != "group":
        raise ValueError(f"load_vq: {folder} has norm_type '{config['norm_type']}'; only 'group' is known.")
    with of_config(folder):
        module = vq(
            channels=config["in_channels"],
            out_channels=config["out_channels"],
            latent_channels=config["latent_channels"],
            entries=config["num_vq_embeddings"],
            entry_width=config["vq_embed_dim"],
            dtype=dtype,
            **shape_of(config, folder),
        )
        found = statistics(config | {"latent_channels": module.entry_width}, folder)  # as a diffusion model sees them
        table = table_of(config)
    tensors = open_tensors(folder, variant=variant)
    params = load(table, tensors, module, example_of(module), dtype=dtype, put=put)
    return Autoencoder(module, params, config, *found)


class VQCall(Call):
    """A VQModel, called by its names."""

    def __call__(self, sample: Array) -> Array:
        return self.network(sample)

    def encode(self, x: Array) -> Array:
        """Return latents that are not quantised."""
        return self.network.encode(x)

    def decode(self, h: Array) -> Array:
        """Return images of latents, which are quantised."""
        return self.network.decode(h)
