"""Plans: what is said follows from what was compiled, and the compiler for TPUs says it of the real step."""

import json
import math
from types import SimpleNamespace

import jax
import pytest

from diffusion_jax.cli.main import run
from diffusion_jax.cli.plan import WORK
from diffusion_jax.config import changed, load_config
from diffusion_jax.launch.absent import devices_of
from diffusion_jax.launch.plan import Plan, largest_batch, make_plan, row, told
from diffusion_jax.launch.traffic import Collective, Traffic
from diffusion_jax.launch.work import Found, Work, memory_of, training_work
from diffusion_jax.training.chips import CHIPS, GIB
from tests.runs import CONFIGS, TOY

SMOKE = f"{CONFIGS / 'quickstart.py'}:smoke"
CHIP = CHIPS["TPU v5e"]


THERE = 100.0


def work(needed, *, batch=8, unit=4, tried=None):
    """Work that needs as much memory as a function of its batch says."""

    def build(batch):
        assert batch % unit == 0 and batch > 0
        if tried is not None:
            tried.append(batch)
        fits = needed(batch) <= THERE  # what needs more than there is has no program
        return Found(batch, 1.0, needed(batch), THERE, traffic=Traffic(0.0, []) if fits else None)

    return Work("training", batch, unit, [SimpleNamespace(device_kind="TPU v5 lite")] * 4, build)


@pytest.mark.parametrize(
    ("needed", "largest"),
    [
        (lambda batch: 20 + 2 * batch, 40),
        (lambda batch: 20 + 10 * batch, 8),
        (lambda batch: 20 + 12 * batch, 4),
        (lambda batch: 90 + 5 * batch, None),
        (lambda batch: 200, None),
        (lambda batch: 20 + 0.1 * batch**1.5, 84),
    ],
)
def test_the_largest_batch_is_found_where_the_memory_ends(needed, largest):
    """For a straight line exactly; on a bend it fits, and what lies an eighth above it does not."""
    tried = []
    asked = work(needed, tried=tried)
    most = largest_batch(asked, asked.build(8))
    assert (most and most.batch) == largest or (most and most.fits and needed(1.125 * most.batch) > THERE)
    assert len(tried) <= 5


def test_memory_is_what_the_allocator_may_take_here_and_a_chip_s_elsewhere(monkeypatch):
    """On GPUs JAX takes three quarters by default; a device that is not here is not asked."""
    here = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", memory_stats=lambda: {"bytes_limit": 60 * 10**9})
    silent = SimpleNamespace(device_kind="cpu", memory_stats=lambda: None)
    absent = SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(jax, "local_devices", lambda: [here, silent])
    assert [memory_of(device) for device in (here, silent, absent)] == [60e9, None, 16 * GIB]


def test_where_nobody_knows_the_memory_none_is_looked_for():
    asked = work(lambda batch: 1.0)
    assert largest_batch(asked, Found(8, 1.0, 1.0, None, traffic=Traffic(0.0, []))) is None


def plan(flops=1e12, memory=1e9, network=1e8, needed=8 * GIB):
    traffic = Traffic(memory, [Collective("all-reduce", 4, 3, network)])
    fits = needed <= CHIP.memory
    one = Found(64, 5.0, needed, CHIP.memory, GIB, flops, traffic if fits else None)
    return Plan("training", "4 x TPU v5 lite", CHIP, one, None)


@pytest.mark.parametrize(
    ("side", "given"),
    [("arithmetic", {"flops": 1e14}), ("memory", {"memory": 1e12}), ("network", {"network": 1e12})],
)
def test_the_longest_of_three_times_bounds_the_rate(side, given):
    one = plan(**given)
    assert max(one.times, key=one.times.__getitem__) == side
    assert one.rate is not None and one.rate == pytest.approx(64 / one.times[side])
    assert one.rate * one.times["arithmetic"] / 64 <= 1  # the share of the peak
    assert f"bound by {side}" in told(one) and "upper bound" in told(one)


def test_what_does_not_fit_is_said_with_what_to_do():
    text = told(plan(needed=20 * GIB))
    assert "DOES NOT FIT: 20.00 GiB of 16.00 GiB" in text and "mesh.fsdp" in text
    assert row(plan(needed=20 * GIB))["fits"] is False


@pytest.mark.parametrize("work", sorted(WORK))
def test_the_devices_here_are_planned_for_by_the_command(work, tmp_path, capsys):
    """Eight devices share the gradient of a step, and nothing of the samples, of which each draws its own."""
    out = tmp_path / "deep" / "plan.json"
    asked = ["--topology=local", "--nolargest", f"--work={work}", f"--out={out}"]
    assert run(["plan", "--config", SMOKE, *asked]) == 0
    (found,) = json.loads(out.read_text())
    assert found["work"] == work and found["flops"] > 0 and 0 < found["held_bytes"] < found["needed_bytes"]
    assert [one["kind"] for one in found["collectives"]] == (["all-reduce"] if work == "training" else [])
    assert "not in the table of chips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:4x4x4"], "v5e:4x4x4"),
        (["--topology=v9:4x4"], "v9"),
        (["--topology=v5e:3x5"], "v5e:3x5"),
        (["--work=traning"], "Did you mean 'training'"),
        (["--config.training.batch_size=10"], "multiple of 8"),
        (["--config.training.mapping=pmap"], "mapping=jit"),
        (["--config.training.mesh.fsdp=3"], "do not fill"),
    ],
)
def test_mistakes_are_said_before_anything_is_compiled(arguments, message, capsys):
    assert run(["plan", "--config", SMOKE, *arguments]) == 2
    assert message in capsys.readouterr().err


def planned(topology, **values):
    """Plan the step of a small network for TPUs."""
    network = {"name": "mlp", "width": 256, "depth": 2}
    config = changed(load_config(TOY), {"training.batch_size": 64, "network": network, **values})
    return make_plan(training_work(config, devices_of(topology)), largest=False)


def kinds(one):
    return {collective["kind"] for collective in row(one)["collectives"]}


@pytest.mark.slow
def test_the_compiler_for_tpus_compiles_the_real_step():
    """With more chips each does and holds less: what is shared is shared, and sums come over the network."""
    alone, split = planned("v5e:2x2"), planned("v5e:4x4", **{"training.mesh.fsdp": 16})
    assert alone.found.fits and split.found.fits
    assert alone.found.flops == pytest.approx(4 * split.found.flops)
    assert split.found.held < alone.found.held < GIB
    assert kinds(alone) == {"all-reduce"} and "all-gather" in kinds(split)
    assert alone.chip == CHIP and alone.rate is not None and 0 < alone.rate < math.inf


@pytest.mark.slow
def test_the_compiler_for_tpus_says_what_does_not_fit():
    config = changed(load_config(str(CONFIGS / "imagenet256_dit.py")), {"training.batch_size": 1024})
    one = training_work(config, devices_of("v5e:4x4")).build(1024)
    assert not one.fits and one.there is not None and one.needed > one.there > 15 * GIB
