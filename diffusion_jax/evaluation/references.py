"""Statistics of reference data in the layouts that published ones have, all npz files:

    mu, sigma                                  of the pool: EDM, pytorch-fid and clean-fid
    mu, sigma, mu_s, sigma_s, and arr_0        of the pool and the spatial features, and images: ADM
    feats                                      rows of the pool: clean-fid's for KID

Nobody says how many images such statistics are of, nor which weights and resizing: that is for their user to know.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.evaluation.metrics import MOMENTS, ROWS, Need
from diffusion_jax.evaluation.moments import Gaussian, covariance
from diffusion_jax.files import read_npz, replacing, trusted
from diffusion_jax.pretrained.weights import fingerprint

PARTS = (("pool", "mu", "sigma"), ("spatial", "mu_s", "sigma_s"))


class Reference(NamedTuple):
    """What a file holds of a reference, for `measure`; the fingerprint is the sha256 of its numbers."""

    name: str
    held: Mapping[Need, Any]
    fingerprint: str


def read_reference(path: str | Path, *, kinds: Mapping[str, int] | None = None) -> Reference:
    """Read reference statistics; `kinds`, an extractor's dimensions, are held against the file's."""
    path = trusted(path, "reference")
    names = {name for _, *pair in PARTS for name in pair} | {"feats"}
    arrays = read_npz(path, "reference", wanted=names.__contains__)  # `arr_0`, of images, stays in the file
    held: dict[Need, Any] = {}
    for kind, mean, cov in PARTS:
        if mean in arrays and cov in arrays:
            held[Need(kind, MOMENTS)] = _gaussian(path, arrays[mean], arrays[cov])
    if "feats" in arrays:
        held[Need("pool", ROWS)] = arrays["feats"]
    if not held:
        raise ValueError(
            f"reference: {path} has no statistics, which are `mu` and `sigma`. If it holds images, give it as images."
        )
    for need, value in held.items():
        _check_dimension(path, need, value, kinds)
    return Reference(path.name, held, fingerprint(arrays))


def write_reference(path: str | Path, held: Mapping[Need, Any]) -> None:
    """Write the moments of a tally of reference images as EDM and ADM do, for any of these readers."""
    arrays = {}
    for kind, mean, cov in PARTS:
        value = held.get(Need(kind, MOMENTS))
        if value is not None:
            arrays |= {mean: value.mean, cov: value.covariance if isinstance(value, Gaussian) else covariance(value)}
    if not arrays:
        raise ValueError("write_reference: there are no moments of 'pool' or 'spatial' to write.")
    with replacing(Path(path)) as file:
        np.savez(file, **arrays)


def _gaussian(path, mean, cov):
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"reference: {path} has a mean of {mean.shape} and a covariance of {cov.shape}.")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"reference: {path} has numbers that are not finite.")
    if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * abs(cov).max()):
        raise ValueError(f"reference: the covariance in {path} is not symmetric.")
    return Gaussian(mean, (cov + cov.T) / 2)


def _check_dimension(path, need, value, kinds):
    found = len(value.mean) if need.form == MOMENTS else value.shape[1]
    wanted = (kinds or {}).get(need.kind, found)
    if wanted != found:
        raise ValueError(
            f"reference: {path} has {found} dimensions of '{need.kind}' and the features have {wanted}; they are of "
            "different networks or layers."
        )
