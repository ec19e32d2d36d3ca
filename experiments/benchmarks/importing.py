"""How long other people's weights take to load, and in how much memory, beside diffusers' own `from_pretrained`.

The checkpoint is synthetic: the U-Net of Stable Diffusion 1.5, 860 million random numbers of float16, 1.7 GB, read to
float32. Each load is a process of its own; ours and theirs take turns, each first read once so that the file is in the
operating system's cache. Beside it, ours is read with each parameter dropped when it is whole, as if it lay on an
accelerator: what is left is what the host needs. Aims: a ratio of at most 1.0 of times and of peaks, and on the host at
most 1.2 times the largest file.

Run it with `python experiments/benchmarks/import.py --peers PYTHON`, the Python of an environment with diffusers; with
`--device gpu` both load to a GPU.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.nets.unet import unet
from diffusion_jax.pretrained import safetensors_file
from diffusion_jax.pretrained.rules import plan
from diffusion_jax.pretrained.unet import complete, keywords_of, table_of

ROOT = Path(__file__).parents[2]
CONFIG = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "attention_head_dim": 8}
SMALL = {"block_out_channels": [32, 64, 64, 64]}
PEAK = """
import json, re
report["peak"] = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps(report))
"""
OURS = """
import sys, time; begin = time.perf_counter()
import jax
from diffusion_jax.pretrained import load
jax.devices()
ready = time.perf_counter()
put = (lambda path, array: None) if sys.argv[2] == "elsewhere" else None
found = load(sys.argv[1], put=put)
jax.block_until_ready(found.params)
done = time.perf_counter()
report = {"import": ready - begin, "load": done - ready, "all": done - begin}
"""
THEIRS = """
import sys, time; begin = time.perf_counter()
import torch
from diffusers import UNet2DConditionModel
ready = time.perf_counter()
found = UNet2DConditionModel.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
if sys.argv[3] == "gpu":
    found = found.to("cuda")
    torch.cuda.synchronize()
done = time.perf_counter()
assert next(found.parameters()).dtype == torch.float32
report = {"import": ready - begin, "load": done - ready, "all": done - begin}
"""


def main() -> None:
    """Write a checkpoint, let processes load it in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description="Time loading a U-Net beside diffusers, and its peak memory.")
    parser.add_argument("--peers", default="", help="the Python of an environment with torch and diffusers")
    parser.add_argument("--rounds", type=int, default=5, help="loads of each")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"], help="where both load to")
    parser.add_argument("--small", action="store_true", help="a U-Net of a few megabytes, to try the benchmark itself")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = checkpoint(Path(folder), CONFIG | (SMALL if options.small else {}))
        children = {"ours": (sys.executable, OURS, "here"), "ours, put elsewhere": (sys.executable, OURS, "elsewhere")}
        if options.peers:
            children["diffusers"] = (options.peers, THEIRS, "here")
        runs = {name: [] for name in children}
        for number in range(1 + options.rounds):
            for name, child in children.items():
                found = measured(child, folder, options.device)
                if number:
                    runs[name].append(found)
    show(runs, size)


def checkpoint(folder: Path, config: dict) -> int:
    """Write a folder as diffusers does, with random numbers of float16; return the bytes of its weights."""
    config = complete(config, folder)
    module = unet(**keywords_of(config, folder))
    spoken = jax.ShapeDtypeStruct((1, 1, config["cross_attention_dim"]), np.float32)
    x, t = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, 8, 8, 4), (1,)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t, {"text": spoken})["params"]
    slots, generator = plan(table_of(config).rules, shapes), np.random.default_rng(0)
    half = np.dtype(np.float16)
    path = folder / "diffusion_pytorch_model.safetensors"
    safetensors_file.write(
        path,
        {name: (half, slot.shape) for name, slot in slots.items()},
        lambda name: (0.02 * generator.standard_normal(slots[name].shape, np.float32)).astype(half),
    )
    (folder / "config.json").write_text(json.dumps(config))
    return path.stat().st_size


def measured(child: tuple[str, str, str], folder: str, device: str) -> dict[str, float]:
    """Run a child and return what it reports, with the time of its whole process."""
    python, code, where = child
    begin = time.perf_counter()
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[device]}
    command = [python, "-c", code + PEAK, folder, where, device]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1]) | {"process": time.perf_counter() - begin}


def show(runs: dict[str, list[dict[str, float]]], size: int) -> None:
    """Print medians, and ratios of the medians."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}")
    print(f"{size / 1e9:.2f} GB of float16\n")
    names = ("import", "load", "all", "process", "peak")
    middle = {
        kind: {name: statistics.median(run[name] for run in found) for name in names} for kind, found in runs.items()
    }
    print("| | import | load | both | process | peak |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind, found in middle.items():
        times = " | ".join(f"{found[name]:.2f} s" for name in names[:-1])
        print(f"| {kind} | {times} | {found['peak'] / 1e9:.2f} GB |")
    if "diffusers" in middle:
        ratios = " | ".join(f"{middle['ours'][name] / middle['diffusers'][name]:.2f}" for name in names)
        print(f"| ratio | {ratios} |")
    spread = {kind: [round(run["load"], 2) for run in found] for kind, found in runs.items()}
    print(f"\nloads: {spread}")


if __name__ == "__main__":
    main()
