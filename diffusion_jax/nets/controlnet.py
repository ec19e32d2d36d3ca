"""Control of a U-Net by an image, by a copy of its way down that speaks through zeros (Zhang et al. 2023).

The copy sees what the U-Net sees and, added behind its first convolution, a hint: an image of edges, depth or poses,
brought to the size of x by convolutions. With h_k what it keeps on its way down, the middle's last, and f_k the same
of the U-Net, which goes up from the sums,

    c_k = scale_k Z_k h_k,        f_k <- f_k + c_k,                                                             (1)

where Z_k is a 1 x 1 convolution, and it and the hint's last one are zero at first. So training starts from the very
U-Net, and only the copy learns. Several control networks add up.

The answer c is a tuple of float32 arrays, an entry `control` of the U-Net's `cond`; the hint is the entry `hint`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.nets import checks
from diffusion_jax.nets.condition import check_hint
from diffusion_jax.nets.initial import ZERO, Scheme, initialize
from diffusion_jax.nets.linear import Conv
from diffusion_jax.nets.unet import Descent, UNet, example_of
from diffusion_jax.types import Apply, Array, Key, Params, Time

Control = tuple[Array, ...]


def controlnet(
    network: UNet,
    *,
    hint_channels: int = 3,
    hint_widths: tuple = (16, 32, 96, 256),
    middle_blocks: int = 2,
    pool: str = "none",
) -> "ControlNet":
    """Build the control network of a U-Net; its hints are halved once less than there are `hint_widths`.

    `middle_blocks` 1 leaves the middle's attention and what follows it out. With `pool` "mean" an answer is one number
    a channel, the mean over its pixels: what is in the hint counts, and not where.
    """
    if not network.block.preactivated:
        raise ValueError("controlnet: this U-Net's blocks are plain; a hint joins what residual blocks start from.")
    checks.whole("controlnet", 1, hint_channels=hint_channels)
    checks.whole("controlnet", 1, **{f"hint_widths[{place}]": width for place, width in enumerate(hint_widths)})
    checks.whole("controlnet", 1, **{"the number of hint_widths": len(hint_widths)})
    checks.one_of("controlnet", ("none", "mean"), pool=pool)
    if middle_blocks not in (1, 2):
        raise ValueError(f"controlnet: middle_blocks is {middle_blocks}; it must be 1 or 2.")
    shared = {name: getattr(network, name) for name in Descent.__dataclass_fields__ if name not in ("parent", "name")}
    shared["told"] = network.told._replace(hint_channels=hint_channels, control=0)
    return ControlNet(**shared, hint_widths=tuple(hint_widths), middle_blocks=middle_blocks, pool=pool)


class ControlNet(Descent):
    """The network of `controlnet`: called as (x, t, cond, scale), it answers for each skip, then for the middle.

    `scale` is one number, or one for each answer, such as those of `falling`.
    """

    hint_widths: tuple[int, ...]
    middle_blocks: int
    pool: str

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Any, scale: Any = 1.0) -> Control:
        signal = self.signal(x, t, cond)
        check_hint(cond["hint"], x, self.told.hint_channels, 2 ** (len(self.hint_widths) - 1))
        read = Hint(self.width, self.hint_widths, self.style.initial, name="hint")
        h, kept = self.descend(x.astype(self.dtype), signal, read(cond["hint"].astype(self.dtype)))
        control = [self.answer(f"zero_{place}", h) for place, h in enumerate(kept)]
        control.append(self.answer("zero_middle", self.bottom(h, signal, self.middle_blocks)))
        return scaled(control, scale)

    def answer(self, name, h):
        """Apply a convolution that is zero at first."""
        h = Conv(h.shape[-1], kernel=1, initial=ZERO, name=name)(h).astype(jnp.float32)
        return h.mean((1, 2), keepdims=True) if self.pool == "mean" else h


class Hint(nn.Module):
    """Bring a hint to `width` channels, halving it between one of the `widths` and the next."""

    width: int
    widths: tuple[int, ...]
    initial: Scheme

    @nn.compact
    def __call__(self, image: Array) -> Array:
        h = nn.silu(Conv(self.widths[0], initial=self.initial, name="first")(image))
        for place, (width, wider) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            h = nn.silu(Conv(width, initial=self.initial, name=f"layer_{2 * place}")(h))
            h = nn.silu(Conv(wider, stride=2, initial=self.initial, name=f"layer_{2 * place + 1}")(h))
        return Conv(self.width, initial=ZERO, name="last")(h)


def clone(params: Params, module: ControlNet, key: Key) -> Params:
    """Return where a control network starts: at copies of its U-Net's `params`, and what the U-Net lacks drawn."""
    known = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(params)
    }

    def given(name, wanted):
        if name.startswith(("hint/", "zero_")):
            return None
        found = known[name].shape if name in known else "not there"
        if found != wanted.shape:
            raise ValueError(
                f"clone: among the U-Net's parameters {name} is {found}; it must be {wanted.shape}. The control "
                "network was built from another U-Net than these are of."
            )
        return jnp.array(known[name], wanted.dtype)  # a copy: steps that donate their state meet no buffer twice

    return initialize(module, key, example(module), given=given)


def example(module: ControlNet) -> tuple[Any, Any, dict[str, Any]]:
    """Return the smallest (x, t, cond) that the module hears, by shape and dtype."""
    x, t, cond = example_of(module)
    side = x.shape[1] * 2 ** (len(module.hint_widths) - 1)
    return x, t, {**cond, "hint": jax.ShapeDtypeStruct((1, side, side, module.told.hint_channels), jnp.float32)}


def controlled(apply: Apply, control: Callable[..., Control], *, scale: Any = 1.0) -> Apply:
    """Return a U-Net and its control network as one, of the parameters {"network": ..., "control": ...}.

    `cond["hint"]` is the control network's, and all else both hear. The U-Net's parameters are held: they get no
    gradient, and an optimizer should hold "network" too, so that it decays nothing of it and keeps no moments.
    """

    def both(params, x, t, cond):
        answer = scaled(control(params["control"], x, t, cond), scale)
        heard = {name: value for name, value in cond.items() if name != "hint"}
        return apply(jax.lax.stop_gradient(params["network"]), x, t, {**heard, "control": answer})

    return both


def scaled(control: Sequence[Array], scale: Any) -> Control:
    """Scale the answers of a control network by one number, or by one for each of them."""
    scales = jnp.asarray(scale, jnp.float32)
    if scales.shape not in ((), (len(control),)):
        raise ValueError(f"scale has shape {scales.shape}; it must be one number, or one for each of {len(control)}.")
    return tuple(c * by for c, by in zip(control, jnp.broadcast_to(scales, len(control)), strict=True))


def falling(count: int) -> np.ndarray:
    """Return scales that fall tenfold from the middle to the first skip, for where no text says what to see."""
    return np.logspace(-1, 0, count, dtype=np.float32)


def summed(*controls: Sequence[Array]) -> Control:
    """Add up the answers of several control networks of one U-Net."""
    counts = sorted({len(control) for control in controls})
    if len(counts) != 1:
        raise ValueError(f"summed: the answers are {counts} arrays; they must be of networks of one U-Net.")
    return tuple(functools.reduce(jnp.add, parts) for parts in zip(*controls, strict=True))
