"""What a file's header says of the ranks and alphas of some layers, which is compared and never run."""

import numpy as np
import pytest

from tests.pretrained.test_lora import PLACE, read, tensors, write

LAYER = PLACE.removeprefix("unet.")


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("to_q", True),
        ("attn1.to_q$", True),
        (LAYER, True),
        (f"^{LAYER}$", True),
        (LAYER.replace(".", r"\."), True),
        ("mid_block.*to_q", True),
        ("^mid_block.*to_q", True),
        ("^to_q", False),
        ("o_q", False),
        ("attn1.to", False),
        ("attn1-to_q", False),
        ("mid_block.*to", False),
    ],
)
def test_patterns_are_ends_of_names(tmp_path, pattern, fits):
    noted = {"unet.lora_alpha": 8, "unet.alpha_pattern": {pattern: 2}}
    found = read(write(tmp_path / "a.safetensors", tensors(), **noted))
    gains = np.asarray(found.gains["middle_mixer/layer_0/attention/qkv/kernel"])
    assert gains.max() == 4 and (1 in gains) == fits


@pytest.mark.parametrize("pattern", [".*" * 40 + "x", "^" + ".*a" * 40], ids=["anything", "letters"])
def test_no_pattern_takes_for_ever(tmp_path, pattern):
    read(write(tmp_path / "a.safetensors", tensors(), **{"unet.alpha_pattern": {pattern: 2}}))


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        ({"lora_alpha": "8"}, "lora_alpha='8'; it must be a number"),
        ({"lora_alpha": None}, "lora_alpha=None; it must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan; it must be a number"),
        ({"r": True}, "r=True; it must be a number"),
        ({"rank_pattern": ["to_q"]}, r"rank_pattern=\['to_q'\]; it must map names of layers to numbers"),
        ({"alpha_pattern": {"to_q": "1"}}, "alpha_pattern={'to_q': '1'}; it must map"),
        ({"alpha_pattern": {"(a+)+b": 1}}, r"alpha_pattern of '\(a\+\)\+b'; known are ends of names of layers"),
        ({"alpha_pattern": {"to_[qk]": 1}}, r"alpha_pattern of 'to_\[qk\]'; known are ends"),
        ({"rank_pattern": {f"^{LAYER}$": 3}}, "noted to be of another rank than 2"),
    ],
)
def test_what_is_no_number_of_a_layer_is_refused(tmp_path, noted, words):
    noted = {f"unet.{word}": value for word, value in noted.items()}
    with pytest.raises(ValueError, match=words):
        read(write(tmp_path / "a.safetensors", tensors(), **noted))
