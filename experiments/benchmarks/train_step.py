"""Forward pass and training step of our networks against the same networks in diffusers on torch.

    pip install -e '.[peers]'
    python experiments/benchmarks/train_step.py --batch 8 --rounds 5
    python experiments/benchmarks/train_step.py --batch 128 --dtype bfloat16 --compiled
    python experiments/benchmarks/train_step.py --startup

Both sides take turns in one process, on the same batch size, on the GPU if there is one and else with as many threads
as there are cores; each figure is the median over the rounds, and what is compared is the ratio within a round. A
training step is the squared error's gradient and Adam's update; parameters are float32, and in bfloat16 theirs is
autocast. `--compiled` gives theirs to torch.compile. On a GPU both multiply float32 as TF32. `--startup` times
processes from their start to the end of the first training step of the U-Net, with an empty and with a full
compilation cache.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.naming import choose
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.network import apply_of, count, initialize
from diffusion_jax.training.flops import flops_of

OURS = {
    "unet": {"name": "unet", "channels": 3, "time": {"name": "positional"}},
    "dit": {"name": "dit", "channels": 4, "out_channels": 8, "size": "S", "patch": 2, "num_classes": 1000},
    "dit_xl": {"name": "dit", "channels": 4, "out_channels": 8, "size": "XL", "patch": 2, "num_classes": 1000},
}
THEIR_DITS = {"dit": {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12}}
THEIR_DITS["dit_xl"] = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28}


def ours(name: str, batch: int, dtype: str = "float32", *, counted: bool = True) -> tuple[Any, Any, dict[str, Any]]:
    """Return forward(), step() and facts of our network; counting its operations takes two traces."""
    spec: Any = {**OURS[name], "dtype": dtype}
    module = choose(NETWORKS, spec, "network")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, 32, 32, spec["channels"])), jnp.float32)
    t, cond = jnp.full(batch, 0.5), ({"label": jnp.zeros(batch, jnp.int32)} if name != "unet" else {})
    begin = time.perf_counter()
    params = jax.block_until_ready(jax.tree.map(jnp.asarray, initialize(module, jax.random.key(0), (x, t, cond))))
    drawn = time.perf_counter() - begin
    apply, optimizer = apply_of(module), optax.adam(1e-4)

    def loss(params):
        return jnp.mean(apply(params, x, t, cond) ** 2)

    def train(params, moments):
        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    forward = jax.jit(apply)
    jitted = jax.jit(train, donate_argnums=(0, 1))
    state = [jax.tree.map(jnp.copy, params), jax.jit(optimizer.init)(params)]
    facts = {"parameters": count(params), "initialisation": drawn}
    if counted:
        facts["forward_flops"] = flops_of(jax.make_jaxpr(apply)(params, x, t, cond))
        facts["step_flops"] = flops_of(jax.make_jaxpr(train)(*state))

    def step():
        state[:] = jax.block_until_ready(jitted(*state))

    return lambda: jax.block_until_ready(forward(params, x, t, cond)), step, facts


def theirs(name: str, batch: int, dtype: str = "float32", *, compiled: bool = False) -> tuple[Any, Any, dict[str, Any]]:
    """Return the same of diffusers' network."""
    diffusers, torch = (cast(Any, import_module(peer)) for peer in ("diffusers", "torch"))
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_float32_matmul_precision("high")  # where there is TF32, as XLA multiplies there
    begin = time.perf_counter()
    if name == "unet":
        model = diffusers.UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            downsample_padding=0,
            norm_eps=1e-6,
            flip_sin_to_cos=False,
            freq_shift=1,
        )
    else:
        model = diffusers.DiTTransformer2DModel(
            in_channels=4,
            out_channels=8,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
            **THEIR_DITS[name],
        )
    drawn = time.perf_counter() - begin
    model = model.to(device)
    x = torch.randn(batch, 3 if name == "unet" else 4, 32, 32, device=device)
    t = torch.full((batch,), 500, device=device)
    more = {} if name == "unet" else {"class_labels": torch.zeros(batch, dtype=torch.long, device=device)}
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=device == "cuda")
    net = torch.compile(model) if compiled else model
    cast_to = partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")

    def done():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad(), cast_to():
            net(x, t, **more)
        done()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with cast_to():
            loss = (net(x, t, **more).sample.float() ** 2).mean()
        loss.backward()
        optimizer.step()
        done()

    facts = {"parameters": sum(p.numel() for p in model.parameters()), "initialisation": drawn}
    return forward, step, facts


def compare(name: str, batch: int, rounds: int, dtype: str, *, compiled: bool) -> dict[str, Any]:
    """Time both networks in turn."""
    sides: dict[str, Any] = {"ours": ours(name, batch, dtype), "theirs": theirs(name, batch, dtype, compiled=compiled)}
    found: dict[str, Any] = {side: facts for side, (_, _, facts) in sides.items()}
    for place, what in enumerate(("forward", "step")):
        seconds = {side: [] for side in sides}
        for round_ in range(-2, rounds):  # the first two compile and warm up
            for side, parts in sides.items():
                begin = time.perf_counter()
                parts[place]()
                if round_ >= 0:
                    seconds[side].append(time.perf_counter() - begin)
        ratios = np.asarray(seconds["ours"]) / np.asarray(seconds["theirs"])
        found[what] = {side: float(np.median(values)) for side, values in seconds.items()}
        found[what] |= {"ratio": float(np.median(ratios)), "from": float(ratios.min()), "to": float(ratios.max())}
        flops = found["ours"][f"{what}_flops"]
        print(
            f"{name:<6} {what:<8}"
            f" ours {found[what]['ours'] * 1e3:6.1f} ms ({flops / found[what]['ours'] / 1e9:4.0f} GF/s)"
            f"  theirs {found[what]['theirs'] * 1e3:6.1f} ms  ratio {found[what]['ratio']:.2f}"
            f" ({found[what]['from']:.2f} to {found[what]['to']:.2f})",
            flush=True,
        )
    return found


def startup() -> dict[str, float]:
    """Time processes from their start to the end of the first training step."""
    code = (
        "import sys, jax; jax.config.update('jax_compilation_cache_dir', sys.argv[1]);"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0);"
        "from experiments.benchmarks.train_step import ours; ours('unet', 8, counted=False)[1]()"
    )
    root = Path(__file__).parent.parent.parent
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for what in ("cold", "cached"):
            begin = time.perf_counter()
            environment = os.environ | {"PYTHONPATH": str(root)}
            subprocess.run([sys.executable, "-c", code, cache], check=True, cwd=root, env=environment)
            found[what] = time.perf_counter() - begin
            print(f"start to first step, {what:<6} {found[what]:6.1f} s", flush=True)
    return found


def main() -> None:
    """Run what was asked for and print it, at the end as json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=["dit", "unet"], choices=sorted(OURS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--startup", action="store_true")
    arguments = parser.parse_args()
    if arguments.startup:
        found: Any = startup()
    else:
        rest = arguments.batch, arguments.rounds, arguments.dtype
        found = {name: compare(name, *rest, compiled=arguments.compiled) for name in arguments.networks}
    where = {"device": jax.devices()[0].device_kind, "machine": platform.processor(), "cores": os.cpu_count()}
    print(json.dumps({"jax": jax.__version__, **where, **found}))


if __name__ == "__main__":
    main()
