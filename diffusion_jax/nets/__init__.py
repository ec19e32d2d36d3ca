"""Networks: linen modules called with (x, t, cond), which know nothing else of diffusion."""

from diffusion_jax.nets.dit import dit
from diffusion_jax.nets.flux import flux
from diffusion_jax.nets.mlp import mlp
from diffusion_jax.nets.mmdit import mmdit
from diffusion_jax.nets.unet import unet
from diffusion_jax.nets.vae import vae
from diffusion_jax.nets.vq import vq

NETWORKS = {"mlp": mlp, "unet": unet, "dit": dit, "mmdit": mmdit, "flux": flux}

# Called with images alone; each has `encode` and `decode`.
AUTOENCODERS = {"vae": vae, "vq": vq}
