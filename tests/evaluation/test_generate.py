"""Samples on disk: every one once, in order, whatever was there before."""

import numpy as np
import pytest

from diffusion_jax.evaluation.generate import fill, generate, stored


def pictures(indices):
    """A sample that knows its index."""
    return np.repeat(np.asarray(indices, np.uint8)[:, None, None, None], 3, -1)


def numbers(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch]


@pytest.mark.parametrize("before", [[], [(10, 4)], [(10, 4), (25, 7)], [(33, 5), (40, 50)]])
@pytest.mark.parametrize("batch", [1, 6, 64])
def test_every_sample_comes_once_and_in_order(tmp_path, before, batch):
    for count, size in before:
        list(generate(pictures, count, tmp_path, batch=size, progress=False))
    assert numbers(generate(pictures, 37, tmp_path, batch=batch, progress=False)) == list(range(37))


def test_what_is_there_is_not_drawn_again_and_gaps_are_filled(tmp_path):
    drawn = []

    def noted(indices):
        drawn.extend(sorted(set(indices.tolist())))
        return pictures(indices)

    list(generate(noted, 12, tmp_path, batch=4, progress=False))
    (tmp_path / "00000004-00000008.npy").unlink()
    drawn.clear()
    assert numbers(generate(noted, 14, tmp_path, batch=8, progress=False)) == list(range(14))
    assert drawn == [4, 5, 6, 7, 12, 13]


@pytest.mark.parametrize("hosts", [1, 2, 5])
@pytest.mark.parametrize("before", [[], [(10, 4)], [(33, 5)]])
def test_hosts_fill_a_folder_together_and_none_draws_what_is_anothers(tmp_path, hosts, before):
    for count, size in before:
        list(generate(pictures, count, tmp_path, batch=size, progress=False))
    drawn = []

    def noted(indices):
        drawn.extend(sorted(set(indices.tolist())))
        return pictures(indices)

    for host in reversed(range(hosts)):  # in whatever order
        fill(noted, 37, tmp_path, batch=6, share=(host, hosts))
    missing = set(range(37)) - {place for count, _ in before for place in range(count)}
    assert sorted(drawn) == sorted(missing)
    drawn.clear()
    assert numbers(generate(noted, 37, tmp_path, batch=6, progress=False)) == list(range(37)) and not drawn


def test_a_kill_loses_no_finished_batch(tmp_path):
    def dies(indices):
        if indices[0] >= 8:
            raise KeyboardInterrupt
        return pictures(indices)

    with pytest.raises(KeyboardInterrupt):
        list(generate(dies, 20, tmp_path, batch=4, progress=False))
    assert list(stored(tmp_path)) == [(0, 4), (4, 8)]


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="both must be 1 or more"):
        list(generate(pictures, 0, tmp_path, batch=4))
