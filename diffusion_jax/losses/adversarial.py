"""How a discriminator learns to tell images apart, and an autoencoder to pass (Goodfellow et al. 2014).

For densities p of what is real and q of what is not, and any discriminator D,

    logistic:  E_p softplus(-D) + E_q softplus(D)  >=  2 log 2 - 2 JS(p, q),    equal for D = log(p / q)          (1)
    hinge:     E_p relu(1 - D) + E_q relu(1 + D)   >=  2 - 2 TV(p, q),          equal for D = sign(p - q)         (2)

Both are halved here, as in latent diffusion. The autoencoder minimises -E_q D, in any case.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Params


def logistic(real: Array, fake: Array) -> Array:
    """Return half of Eq. (1), from the logits of real and of other patches."""
    return (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()) / 2


def hinge(real: Array, fake: Array) -> Array:
    """Return half of Eq. (2), from the logits of real and of other patches."""
    return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2


def deception(fake: Array) -> Array:
    """Return what the autoencoder minimises, from the logits of its images."""
    return -fake.mean()


def balance(reconstruction: Params, adversarial: Params, *, most: float = 1e4) -> Array:
    """Return the weight that gives two losses equal gradients, of which these are, by the decoder's last kernel.

    It is a constant to whatever derives through it (Esser et al. 2021, Eq. 7).
    """
    sizes = [jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(g))) for g in (reconstruction, adversarial)]
    return jax.lax.stop_gradient(jnp.clip(sizes[0] / (sizes[1] + 1e-4), 0.0, most))


ADVERSARIES: dict[str, Callable[[Array, Array], Array]] = {"logistic": logistic, "hinge": hinge}
