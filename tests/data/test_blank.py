"""What a config expects of its data is held against them, and stands for them where they are not."""

import numpy as np
import pytest

from diffusion_jax.data import make_pipeline, make_source
from diffusion_jax.data.blank import blank, check_expected

SHAPES = {"x": (16, 16, 3), "dtype": "uint8", "classes": make_source({"name": "shapes", "side": 16}).info.num_classes}


def test_a_blank_goes_through_the_transforms_as_the_data_would():
    """Its batches have the shapes and the dtypes of theirs."""
    steps = ({"name": "to_unit"}, {"name": "drop_label", "rate": 0.1})
    real, stand_in = (
        make_pipeline(source, steps, batch_size=4, seed=0)[0]
        for source in (make_source({"name": "shapes", "side": 16}), blank(SHAPES))
    )
    for name, value in stand_in.items():
        assert (value.shape, value.dtype) == (real[name].shape, real[name].dtype), name


def test_lengths_that_vary_are_given_one_size_by_a_transform():
    source = blank({"x": (None, None, 3), "dtype": "uint8", "classes": 7})
    assert make_pipeline(source, ({"name": "adm_crop", "side": 8},), batch_size=2, seed=0)[0]["x"].shape == (2, 8, 8, 3)
    assert source.info.num_classes == 7 and "label" in source[0]


def test_without_classes_there_are_no_labels():
    example = blank({"x": (2,), "dtype": "float32", "classes": 0})[3]
    assert set(example) == {"x"} and example["x"].dtype == np.float32


@pytest.mark.parametrize("change", [{"x": (32, 16, 3)}, {"x": (16, 16)}, {"classes": 2}], ids=str)
def test_other_data_than_expected_are_refused(change):
    source = make_source({"name": "shapes", "side": 16})
    check_expected(source, {})
    check_expected(source, SHAPES)
    check_expected(source, SHAPES | {"x": (None, None, 3)})
    with pytest.raises(ValueError, match=r"x of shape \(16, 16, 3\) and \d+ classes; config.expects says"):
        check_expected(source, SHAPES | change)
