"""Meshes: any arrangement of the devices gives the parameters of one, and memory is shared as they say."""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from PIL import Image

from diffusion_jax.devices import split_of
from diffusion_jax.launch.distributed import VARIABLE, described, join
from diffusion_jax.launch.local import free_address
from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.network import apply_of, initialize
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.ema import AVERAGES
from diffusion_jax.training.logbook import read
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.parallel import layout_of, make_mesh, parallelize
from diffusion_jax.training.state import start_state
from diffusion_jax.training.step import make_train_step
from tests.laws import quick
from tests.runs import CONFIGS, IMAGES

SIZE = {"name": "custom", "width": 128, "depth": 2, "heads": 2}
AVERAGE = {"ema": AVERAGES["constant"](decay=0.9)}
MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "both": {"data": 2, "fsdp": 4},
    "tensor": {"data": 4, "tensor": 2},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


@functools.cache
def parts():
    """A small transformer and its optimizer."""
    module = NETWORKS["dit"](channels=3, patch=4, size=SIZE, num_classes=4)
    x, label = jnp.zeros((1, 8, 8, 3)), {"label": jnp.zeros(1, jnp.int32)}
    params = initialize(module, jax.random.key(0), (x, jnp.zeros(1), label))
    # The last layer starts at zero, which would keep the gradient from the others.
    params = jax.tree.map(lambda leaf: leaf + 0.02, params)
    loss = denoising_loss(apply_of(module), SCHEDULES["rectified"](), prediction="velocity", global_batch=16)
    optimizer, _ = make_optimizer({"name": "adam", "eps": 1e-2}, {"name": "constant", "peak": 1e-3}, clip=1.0)
    return params, loss, optimizer


def batch(step):
    generator = np.random.default_rng(step)
    x = generator.normal(size=(16, 8, 8, 3)).astype(np.float32)
    return {"x": x, "index": 16 * step + np.arange(16), "cond": {"label": np.arange(16) % 4}}


def prepared(devices, sizes=None):
    params, loss, optimizer = parts()
    make_step = functools.partial(make_train_step, loss, optimizer, AVERAGE)
    parallel = parallelize(make_step, make_mesh(jax.devices()[:devices], sizes=sizes))
    return parallel, parallel.put_state(start_state(params, optimizer, AVERAGE, jax.random.key(0)))


@functools.cache
def trained(devices, name=""):
    """Two steps, compiled ahead; returns the parameters on the host, the state and the compiled program's text."""
    parallel, state = prepared(devices, MESHES.get(name))
    first = parallel.put_batch(batch(0))
    run = parallel.step.lower(state, first).compile()
    for step in range(2):
        state, _ = run(state, parallel.put_batch(batch(step)))
    return jax.tree.map(np.asarray, parallel.whole(state.params)), state, run.as_text()


@pytest.mark.parametrize("name", quick(sorted(MESHES), "fsdp"))
def test_every_mesh_gives_the_parameters_of_one_device(name):
    alone, here = trained(1)[0], trained(8, name)[0]
    begun = parts()[0]
    for one, other, start in zip(*map(jax.tree.leaves, (alone, here, begun)), strict=True):
        moved = np.abs(one - start).max()
        assert np.abs(one - other).max() < 2e-2 * moved, "the sums are in another order, and no more"


def bytes_of(tree):
    """Bytes that the first device holds."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_what_a_device_holds_falls_with_the_devices():
    """Parameters, averages and moments; what is too small to be split is less than a twentieth here."""
    for part in ("params", "averages", "opt_state"):
        whole = bytes_of(getattr(trained(1)[1], part))
        for name, shares in (("fsdp", 8), ("data", 1)):
            held = bytes_of(getattr(trained(8, name)[1], part))
            assert whole / shares <= held < whole * (1 / shares + 0.05), (part, name)


def collectives(text):
    """Count the collectives of a compiled program by kind."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


def test_the_compiled_step_communicates_as_its_mesh_says():
    """One device says nothing. Data: sums alone. Fsdp: gathers parameters, and never moves activations."""
    assert not any(collectives(trained(1)[2]).values())
    data, fsdp = collectives(trained(8, "data")[2]), collectives(trained(8, "fsdp")[2])
    assert data["all-reduce"] > 0 and sum(data.values()) == data["all-reduce"]
    assert fsdp["all-gather"] > 0 and fsdp["all-to-all"] == 0


def test_layers_of_a_scan_and_windows_are_never_split():
    mesh = make_mesh(sizes={"fsdp": 4, "data": 2})
    assert split_of("blocks/dense_1/kernel", (8, 128, 512), mesh.shape) == P(None, None, "fsdp")
    assert split_of("blocks/dense_1/bias", (8, 1024), mesh.shape) == P(None, None)
    assert split_of("down/conv_1/kernel", (4, 4, 64, 32), mesh.shape) == P(None, None, "fsdp", None)
    assert split_of("first/kernel", (3, 3, 3, 128), mesh.shape) == P(None, None, None, None)  # small


def test_the_columns_of_one_product_meet_the_rows_of_the_next():
    mesh = make_mesh(sizes={"tensor": 2, "fsdp": 2, "data": 2})
    assert split_of("ema/blocks/dense_1/kernel", (8, 128, 512), mesh.shape) == P(None, "fsdp", "tensor")
    assert split_of("blocks/dense_2/kernel", (8, 512, 128), mesh.shape) == P(None, "tensor", "fsdp")
    assert split_of("layer/to_text/kv/kernel", (64, 128), mesh.shape) == P("fsdp", "tensor")
    assert split_of("layer/attention/out/kernel", (63, 64), mesh.shape) == P(None, None)  # cannot be halved


def test_moments_and_averages_lie_as_their_parameters_do():
    state = trained(8, "both")[1]
    mesh = make_mesh(sizes=MESHES["both"])
    layout = layout_of(state, mesh)
    same = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, layout)
    assert all(jax.tree.leaves(same))
    assert (
        layout.params["blocks"]["dense_1"]["kernel"].spec == layout.averages["ema"]["blocks"]["dense_1"]["kernel"].spec
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fdsp": 2}, "no axis 'fdsp'. Did you mean 'fsdp'"),
        ({"fsdp": 3}, "data=-1, fsdp=3, tensor=1, which 8 devices do not fill"),
        ({"data": 2, "fsdp": 2}, "their product must be 8"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
        ({"data": 0}, "sizes are 1 or more"),
    ],
)
def test_meshes_that_the_devices_do_not_fill_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(sizes=sizes)


def test_pmap_is_for_data_alone():
    with pytest.raises(ValueError, match="pmap splits the batch alone"):
        parallelize(
            functools.partial(make_train_step, *parts()[1:], AVERAGE), make_mesh(sizes={"fsdp": 8}), mapping="pmap"
        )


@pytest.mark.slow
def test_processes_that_join_train_as_one(tmp_path):
    """Four processes over loopback, kernels split between two, give the parameters of one and one record.

    That two do is seen where they are launched and killed.
    """
    address = free_address()
    flags = [*IMAGES[1:], "--config.training.tensorboard=False", "--config.training.steps=3"]
    flags += ["--config.sampling.batch_size=4", "--config.sampling.count=10"]
    flags += ["--config.evaluation.every=3", "--config.evaluation.metrics=('agreement',)"]
    flags += ["--config.evaluation.samples=10"]

    def begin(workdir, *more, **environment):
        words = [sys.executable, "-m", "diffusion_jax", "train", "--config", str(CONFIGS / IMAGES[0]), *flags, *more]
        known = {"PYTHONPATH": str(CONFIGS.parent), "JAX_PLATFORMS": "cpu"}
        log = (tmp_path / f"{workdir}{environment.get(VARIABLE, '')[:1]}.log").open("w")
        return subprocess.Popen(
            [*words, "--workdir", str(tmp_path / workdir)], env={**os.environ, **known, **environment}, stderr=log
        )

    all_ = [begin("four", "--config.training.mesh.fsdp=2", **described(place, 4, address)) for place in range(4)]
    alone = begin("one")
    assert [process.wait(300) for process in (*all_, alone)] == [0] * 5
    found = [Checkpoints(tmp_path / name / "checkpoints").part("params")[1] for name in ("four", "one")]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert [line["step"] for line in read(tmp_path / "four") if "loss" in line] == [1, 2, 3]
    # They share the drawing of the samples as well: fewer batches than processes, and the picture of one.
    shown = [np.asarray(Image.open(next((tmp_path / name / "pictures").glob("*.png")))) for name in ("four", "one")]
    assert np.abs(shown[0].astype(int) - shown[1]).max() <= 2
    rows = [(tmp_path / name / "evaluations.jsonl").read_text().splitlines() for name in ("four", "one")]
    assert len(rows[0]) == 1 and json.loads(rows[0][0])["value"] == json.loads(rows[1][0])["value"]


@pytest.mark.parametrize("said", ["2/2@host:1", "0/2", "0/2@host", "x"])
def test_a_process_that_cannot_place_itself_says_so(said):
    with pytest.raises(ValueError, match=re.escape(f"{VARIABLE} is '{said}'; it must be 'auto', or like")):
        join({VARIABLE: said})
    join({})
