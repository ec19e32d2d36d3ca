"""What networks are told for captions."""

import numpy as np
import pytest

from diffusion_jax.data.source import Info
from diffusion_jax.prompts import make_prompts, told_for
from tests import pipelines

IMAGES = Info("images", {"x": (16, 16, 3)})


def test_zeros_stand_for_a_t5_that_was_left_out(tmp_path):
    folder = pipelines.encoders(tmp_path / "sd3", t5="_3", width=48)
    spec = {"name": "clip_t5", "folder": str(folder), "length": 5}
    whole = told_for(make_prompts(spec, IMAGES), ["ab", "cd"])
    for part in ("text_encoder_3", "tokenizer_3"):
        (folder / part).rename(tmp_path / part)
    with pytest.raises(ValueError, match="there is no .*text_encoder_3"):
        make_prompts(spec, IMAGES)
    prompts = make_prompts(spec | {"zeros": 48}, IMAGES)
    assert prompts.shapes["text"] == (16 + 5, 48)
    told = told_for(prompts, ["ab", "cd"])
    np.testing.assert_array_equal(told["text"][:, :16], whole["text"][:, :16])
    np.testing.assert_array_equal(told["pooled"], whole["pooled"])
    assert np.any(whole["text"][:, 16:]) and not np.any(told["text"][:, 16:])
