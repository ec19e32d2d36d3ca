"""A network that lies elsewhere is read in the memory of its largest file."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import re, sys
from diffusion_jax.pretrained import load
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
load(sys.argv[1], put=lambda path, array: None)
before = peak()
found = load(sys.argv[2], put=lambda path, array: None)
print(peak() - before)
"""


def sparse(folder, layers, vocabulary, dtype):
    """Write T5 as a file of zeros that takes no room on the disk; return its size."""
    width, hidden = 1024, 4096
    layer = "encoder.block.{}.layer.{}"
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (vocabulary, width)}
    shapes[layer.format(0, 0) + ".SelfAttention.relative_attention_bias.weight"] = (32, 16)
    for number in range(layers):
        attention, dense = layer.format(number, 0), layer.format(number, 1)
        shapes |= {f"{place}.layer_norm.weight": (width,) for place in (attention, dense)}
        shapes |= {f"{attention}.SelfAttention.{part}.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{dense}.DenseReluDense.{part}.weight": (hidden, width) for part in ("wi_0", "wi_1")}
        shapes[f"{dense}.DenseReluDense.wo.weight"] = (width, hidden)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    header, place = {}, 0
    for name, shape in shapes.items():
        stop = place + int(np.prod(shape)) * np.dtype(dtype).itemsize
        code = {"float32": "F32", "bfloat16": "BF16"}[np.dtype(dtype).name]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": (place, stop)}
        place = stop
    text = json.dumps(header).encode()
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    sizes = {"d_model": width, "d_ff": hidden, "num_layers": layers, "num_heads": 16, "vocab_size": vocabulary}
    kind = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
    (folder / "config.json").write_text(json.dumps(kind | sizes))
    return place


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_peak_is_at_most_the_largest_file_and_a_fifth(dtype, tmp_path):
    sparse(tmp_path / "small", 1, 100, dtype)
    size = sparse(tmp_path / "large", 12, 32128, dtype)
    command = [sys.executable, "-c", CODE, str(tmp_path / "small"), str(tmp_path / "large")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    print(f"{np.dtype(dtype).name}: {grown / size:.2f} of {size / 1e6:.0f} MB")
    assert grown < 1.2 * size
