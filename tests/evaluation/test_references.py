"""Files of reference statistics: the layouts that there are, and those that are refused."""

import pickle
import shutil

import numpy as np
import pytest

from diffusion_jax.evaluation.fid import fid
from diffusion_jax.evaluation.images import images_of
from diffusion_jax.evaluation.metrics import Need
from diffusion_jax.evaluation.moments import accumulate, covariance, empty
from diffusion_jax.evaluation.references import read_reference, write_reference
from tests.conftest import REFERENCE

POOL, SPATIAL = Need("pool", "moments"), Need("spatial", "moments")


def test_the_layout_of_edm():
    found = read_reference(REFERENCE / "stats_edm_style.npz", kinds={"pool": 16, "spatial": 99})
    stored = np.load(REFERENCE / "stats_edm_style.npz")
    assert set(found.held) == {POOL}
    np.testing.assert_array_equal(found.held[POOL].mean, stored["mu"])
    np.testing.assert_allclose(found.held[POOL].covariance, stored["sigma"], rtol=1e-12)


def test_the_layout_of_adm_has_spatial_statistics_and_images():
    path = REFERENCE / "stats_adm_style.npz"
    found, stored = read_reference(path), np.load(path)
    assert set(found.held) == {POOL, SPATIAL}
    np.testing.assert_array_equal(found.held[SPATIAL].mean, stored["mu_s"])
    np.testing.assert_allclose(found.held[SPATIAL].covariance, stored["sigma_s"], rtol=1e-12)
    np.testing.assert_array_equal(np.concatenate(list(images_of(path, batch=3))), stored["arr_0"])


def test_statistics_are_of_the_features_they_were_made_of(reference, tmp_path):
    """The files in the two layouts are of known features; what is written is read back."""
    points = reference("metrics.npz")["small/a"]
    moments = accumulate(empty(16), points)
    write_reference(tmp_path / "own.npz", {POOL: moments, SPATIAL: moments})
    again = read_reference(tmp_path / "own.npz")
    np.testing.assert_array_equal(again.held[SPATIAL].covariance, covariance(moments))
    assert fid(moments, again.held[POOL]) == pytest.approx(0, abs=1e-9)
    stored = read_reference(REFERENCE / "stats_edm_style.npz").held[POOL]
    assert fid(moments, stored) == pytest.approx(0, abs=1e-6)


def test_the_rows_of_clean_fid_serve_kid(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    np.savez(tmp_path / "kid.npz", feats=rows)
    np.testing.assert_array_equal(read_reference(tmp_path / "kid.npz").held[Need("pool", "rows")], rows)


def test_the_fingerprint_is_of_the_numbers(tmp_path):
    one = read_reference(REFERENCE / "stats_edm_style.npz")
    shutil.copy(REFERENCE / "stats_edm_style.npz", tmp_path / "other name.npz")
    assert read_reference(tmp_path / "other name.npz").fingerprint == one.fingerprint
    stored = dict(np.load(REFERENCE / "stats_edm_style.npz"))
    np.savez_compressed(tmp_path / "compressed.npz", **stored)
    assert read_reference(tmp_path / "compressed.npz").fingerprint == one.fingerprint
    stored["mu"][3] = np.nextafter(stored["mu"][3], 9)
    np.savez(tmp_path / "changed.npz", **stored)
    assert read_reference(tmp_path / "changed.npz").fingerprint != one.fingerprint


def write(path, **arrays):
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("none.npz", lambda path: None, "there is no file"),
        ("stats.pkl", lambda path: path.write_bytes(pickle.dumps({})), "is a pickle.*numpy.savez"),
        ("pickle.npz", lambda path: path.write_bytes(pickle.dumps({"mu": 1})), "not a whole npz.*refused.*savez"),
        ("cut.npz", lambda path: path.write_bytes(b"PK\x03\x04 cut"), "not a whole npz"),
        ("objects.npz", lambda path: write(path, mu=np.array([{}]), sigma=np.eye(1)), "not a whole npz.*plain"),
        ("array.npz", lambda path: np.save(path.open("wb"), np.eye(2)), "not a whole npz"),
        ("images.npz", lambda path: write(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8)), "give it as images"),
        ("wide.npz", lambda path: write(path, mu=np.zeros(3), sigma=np.eye(4)), r"covariance of \(4, 4\)"),
        ("nan.npz", lambda path: write(path, mu=np.zeros(2), sigma=np.full((2, 2), np.nan)), "not finite"),
        ("askew.npz", lambda path: write(path, mu=np.zeros(2), sigma=np.array([[1, 0.5], [0, 1]])), "not symmetric"),
        ("other.npz", lambda path: write(path, mu=np.zeros(2), sigma=np.eye(2)), "2 dimensions of 'pool'.* have 16"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=words):
        read_reference(tmp_path / name, kinds={"pool": 16})
