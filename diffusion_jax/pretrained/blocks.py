"""What the files of diffusers' U-Nets and autoencoders spell alike: residual blocks, and the attention of images."""

from types import MappingProxyType

from diffusion_jax.pretrained.rules import CONV, DENSE, Layout, Rule, linear, norm

DIFFUSERS = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
# As diffusers wrote it before 0.12, and as most published models are.
BEFORE = MappingProxyType({".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."})


def residual(theirs: str, ours: str, shortcut: str = "conv_shortcut") -> list[Rule]:
    """Give the rules of a residual block, which may be told the time."""
    return [
        *norm(f"{theirs}.norm1", f"{ours}/norm_1"),
        *linear(f"{theirs}.conv1", f"{ours}/conv_1", CONV),
        *linear(f"{theirs}.time_emb_proj", f"{ours}/tell"),
        *norm(f"{theirs}.norm2", f"{ours}/norm_2"),
        *linear(f"{theirs}.conv2", f"{ours}/conv_2", CONV),
        *linear(f"{theirs}.{shortcut}", f"{ours}/shortcut", CONV),
    ]


def attention(theirs: str, ours: str, names: tuple[str, ...] = DIFFUSERS, layout: Layout = DENSE) -> list[Rule]:
    """Give the rules of attention over pixels; `names` are of its norm, its three products, and the last."""
    first, *parts, out = (f"{theirs}.{name}" for name in names)
    return [
        *norm(first, f"{ours}/norm"),
        *linear(tuple(parts), f"{ours}/attention/qkv", layout),
        *linear(out, f"{ours}/attention/out", layout),
    ]
