"""The picture shows what it was given."""

import io

import numpy as np
from matplotlib.collections import LineCollection, PathCollection

from diffusion_jax import plots


def test_paths_and_samples_are_where_they_should_be():
    generator = np.random.default_rng(0)
    paths, samples = generator.normal(size=(5, 7, 2)), generator.normal(size=(11, 2))
    times = np.linspace(1, 0, 5)
    log_density = -((np.mgrid[-3:3:20j, -3:3:20j] ** 2).sum(0))
    figure = plots.paths_and_samples(paths, times, samples, log_density, limit=3.0, title="a title")
    left, right = figure.axes[:2]
    (lines,) = (part for part in left.collections if isinstance(part, LineCollection))
    pieces = np.array(lines.get_segments())
    assert pieces.shape == (4 * 7, 2, 2)
    np.testing.assert_array_equal(pieces.reshape(4, 7, 2, 2)[2, 3], paths[2:4, 3])
    colours = np.asarray(lines.get_array()).reshape(4, 7)
    np.testing.assert_allclose(colours[:, 0], (times[1:] + times[:-1]) / 2)
    start, end = (part.get_offsets() for part in left.collections if type(part) is PathCollection)
    np.testing.assert_array_equal(start, paths[0])
    np.testing.assert_array_equal(end, paths[-1])
    (points,) = (part.get_offsets() for part in right.collections if type(part) is PathCollection)
    np.testing.assert_array_equal(points, samples)
    for axes in (left, right):
        assert axes.get_xlim() == axes.get_ylim() == (-3, 3)
    figure.savefig(io.BytesIO(), format="png")
