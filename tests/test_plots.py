"""The picture shows what it was given."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.quiver import Quiver

from diffusion_jax import plots
from diffusion_jax.evaluation.card import Card


def parts(axes, kind):
    """List the collections of one kind."""
    return [part for part in axes.collections if type(part) is kind]


def test_paths_and_samples_are_where_they_should_be():
    generator = np.random.default_rng(0)
    paths, samples = generator.normal(size=(5, 7, 2)), generator.normal(size=(11, 2))
    times = np.linspace(1, 0, 5)
    log_density = -((np.mgrid[-3:3:20j, -3:3:20j] ** 2).sum(0))
    figure = plots.paths_and_samples(paths, times, samples, log_density, limit=3.0, title="a title")
    left, right = figure.axes[:2]
    (lines,) = parts(left, LineCollection)
    pieces = np.array(lines.get_segments())
    assert pieces.shape == (4 * 7, 2, 2)
    np.testing.assert_array_equal(pieces.reshape(4, 7, 2, 2)[2, 3], paths[2:4, 3])
    colours = np.asarray(lines.get_array()).reshape(4, 7)
    np.testing.assert_allclose(colours[:, 0], (times[1:] + times[:-1]) / 2)
    start, end = (part.get_offsets() for part in parts(left, PathCollection))
    np.testing.assert_array_equal(start, paths[0])
    np.testing.assert_array_equal(end, paths[-1])
    (points,) = (part.get_offsets() for part in parts(right, PathCollection))
    np.testing.assert_array_equal(points, samples)
    for axes in (left, right):
        assert axes.get_xlim() == axes.get_ylim() == (-3, 3)
    figure.savefig(io.BytesIO(), format="png")


def test_planes_show_their_parts_on_one_square():
    generator = np.random.default_rng(1)
    positions, vectors, points = generator.normal(size=(3, 5, 2))
    steps = generator.normal(size=(4, 6, 2))
    shown = (
        plots.Plane("arrows", arrows=(positions, vectors)),
        plots.Plane("points", lambda x: -(x**2).sum(1), points=points, times=np.linspace(0, 1, 5)),
        plots.Plane("paths", paths=(steps, np.linspace(1, 0, 4))),
    )
    figure = plots.planes(*shown, limit=2.5, columns=2)
    arrows, dots, walks, spare = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["arrows", "points", "paths", ""]
    assert not spare.get_visible()
    for axes in (arrows, dots, walks):
        assert axes.get_xlim() == axes.get_ylim() == (-2.5, 2.5)
    (quiver,) = parts(arrows, Quiver)
    np.testing.assert_array_equal(quiver.get_offsets(), positions)
    np.testing.assert_array_equal(np.stack([quiver.U, quiver.V], 1), vectors)
    assert (quiver.angles, quiver.scale_units, quiver.scale) == ("xy", "xy", 1)  # so they end at positions + vectors
    (scatter,) = parts(dots, PathCollection)
    np.testing.assert_array_equal(scatter.get_offsets(), points)
    np.testing.assert_allclose(np.asarray(scatter.get_facecolor())[[0, -1], :3], plots.TIME([0.0, 1.0])[:, :3])
    (lines,) = parts(walks, LineCollection)
    assert len(lines.get_segments()) == 3 * 6
    figure.savefig(io.BytesIO(), format="png")


def test_the_density_of_a_plane_lies_under_its_points():
    centre = np.array([1.0, -1.5])
    figure = plots.planes(plots.Plane("", lambda x: -10 * ((x - centre) ** 2).sum(1)), limit=2.0)
    (image,) = figure.axes[0].images
    values = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert image.origin == "lower"
    found = (
        left + (column + 0.5) / values.shape[1] * (right - left),
        bottom + (row + 0.5) / len(values) * (top - bottom),
    )
    np.testing.assert_allclose(found, centre, atol=0.03)


def test_curves_keep_the_ink_of_a_name_and_tell_it_once():
    xs = np.arange(1, 5)
    first = plots.Panel("first", "x", "y", {"a": (xs, xs), "b": (xs, xs**2)}, {"aim": 2.0}, log="xy")
    second = plots.Panel("second", "x", "y", {"b": (xs, -xs), "c": (np.arange(40), np.arange(40.0))})
    figure = plots.curves(first, second)
    left, right = figure.axes
    (a, b, level), (other_b, c) = left.get_lines(), right.get_lines()
    np.testing.assert_array_equal(b.get_xydata(), np.stack([xs, xs**2], 1))
    assert b.get_color() == other_b.get_color()
    assert len({line.get_color() for line in (a, b, c)}) == 3
    assert set(np.ravel(level.get_ydata())) == {2.0}
    assert (left.get_xscale(), left.get_yscale(), right.get_xscale()) == ("log", "log", "linear")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "aim"]
    assert c.get_marker() != a.get_marker()  # points of long lines are not marked
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize("letters", [2, 10, 34])
def test_long_names_stay_on_the_page(letters):
    named = {f"{number}" + letters * "m": ([0, 1], [number, number]) for number in range(9)}
    figure = plots.curves(plots.Panel("", "x", "y", named))
    plots.pixels(figure)  # lays everything out
    (legend,) = figure.legends
    left, right = legend.get_window_extent().intervalx
    assert figure.bbox.x0 <= left < right <= figure.bbox.x1


def test_more_names_than_inks_still_differ():
    lines = {str(i): ([0, 1], [i, i]) for i in range(2 * len(plots.INKS))}
    (axes,) = plots.curves(plots.Panel("", "x", "y", lines)).axes
    assert len({(line.get_color(), str(line.get_linestyle())) for line in axes.get_lines()}) == len(lines)


@pytest.mark.parametrize("side", [4, 16, 120])
def test_images_stand_in_the_columns_of_their_classes(side):
    generator = np.random.default_rng(2)
    colours = generator.integers(0, 256, (7, 3)).astype(np.uint8)
    images = np.broadcast_to(colours[:, None, None], (7, side, side, 3))
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    picture = plots.image_grid(images, labels, ("red", "green", "blue"))
    paper = np.round(255 * np.asarray(to_rgb(plots.PAPER))).astype(np.uint8)
    beside = picture.shape[1] // 6
    for column in range(3):
        seen = picture[:, beside * (2 * column + 1)]
        starts = np.flatnonzero((seen[1:] != seen[:-1]).any(1)) + 1
        blocks = [seen[a] for a, b in itertools.pairwise(starts) if b - a > 40]
        np.testing.assert_array_equal([block for block in blocks if (block != paper).any()], colours[labels == column])


def test_lines_show_values_and_their_intervals():
    def card(value):
        return Card("fid", value, (value - 1, value + 1), "lower", {}, {}, {})

    figure = plots.lines({"a": [(1, card(5.0)), (2, card(3.0))], "b": [(1, card(4.0))]}, "steps", "fid")
    (axes,) = figure.axes
    a, first, second, b, _ = axes.get_lines()
    np.testing.assert_array_equal(a.get_xydata(), [[1, 5], [2, 3]])
    np.testing.assert_array_equal(first.get_xydata(), [[1, 4], [1, 6]])
    np.testing.assert_array_equal(second.get_xydata(), [[2, 2], [2, 4]])
    assert a.get_color() == second.get_color() != b.get_color()
