"""The loop: batches, devices, counts, traces, and what it refuses."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.denoisers.guidance import classifier_free
from diffusion_jax.denoisers.network import make_denoiser
from diffusion_jax.process.forward import prior
from diffusion_jax.process.noise import example_keys
from diffusion_jax.process.oracle import gaussian
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.multistep import POSITIONS
from diffusion_jax.solvers.ode import ONE_STEP
from diffusion_jax.solvers.solver import encode, evaluations, progress, sample
from diffusion_jax.solvers.unipc import VARIANTS
from tests import laws
from tests.solver_cases import ALL_CASES, FINE_CASES, ODE_CASES, SDE_CASES, first_variants, start, two_dimensional

KEY = jax.random.key(7)
RECTIFIED = laws.SCHEDULE_CASES["rectified"]()
DATA = two_dimensional()["mixture"]


def counting(denoise, calls):
    """Count the calls that really run."""

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return denoise(x, t)

    return counted


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_keeps_the_protocol(name):
    """Made from a schedule and keywords with defaults, it carries its own name and samples what one would call data."""
    schedule, *keywords = inspect.signature(SOLVERS[name]).parameters.values()
    assert schedule.name == "schedule"
    assert all(word.kind is word.KEYWORD_ONLY and word.default is not word.empty for word in keywords)
    solver = SOLVERS[name](RECTIFIED)
    assert solver.name == name == SOLVERS[name].__name__
    assert [*inspect.signature(solver.step).parameters][:3] == ["denoise", "x", "now"]
    keys = example_keys(KEY, 256)
    x = prior(RECTIFIED, keys, jnp.zeros((256, 2)))
    x0 = jax.jit(lambda x: sample(DATA.denoiser(RECTIFIED), solver, jnp.linspace(1, 0, 41), x, KEY)[0])(x)
    np.testing.assert_allclose(x0.mean(0), DATA.mean(), atol=0.35)
    np.testing.assert_allclose(x0.std(0), DATA.std(), rtol=0.2)


STARTED = [case for case in FINE_CASES if "start" in case.keywords]


@pytest.mark.parametrize("case", first_variants([*ODE_CASES, *STARTED, *SDE_CASES]), ids=lambda case: case.label)
def test_evaluations_are_those_claimed(case):
    schedule = laws.SCHEDULE_CASES["linear_beta"]()
    solver = case.make(schedule)
    for times in (np.linspace(1, 0, 6), np.linspace(1, 0.1, 3)):
        calls = []
        x = jax.random.normal(KEY, (2, 2))
        jax.block_until_ready(sample(counting(DATA.denoiser(schedule), calls), solver, times, x, KEY))
        jax.effects_barrier()
        assert len(calls) == evaluations(solver, times, schedule)


@pytest.mark.parametrize(("steps", "count"), [(18, 35), (40, 79), (256, 511)])
def test_heun_counts_as_published(steps, count):
    schedule = laws.SCHEDULE_CASES["karras"]()
    assert evaluations(SOLVERS["edm"](schedule), np.linspace(1, 0, steps + 1), schedule) == count


@pytest.mark.parametrize("case", first_variants(SDE_CASES), ids=lambda case: case.label)
def test_a_sample_does_not_depend_on_its_batch_or_devices(case):
    solver, denoise = case.make(RECTIFIED), DATA.denoiser(RECTIFIED)
    times, keys = jnp.linspace(1, 0, 6), example_keys(KEY, 64)
    x = prior(RECTIFIED, keys, jnp.zeros((64, 2)))
    run = jax.jit(lambda x, indices: sample(denoise, solver, times, x, KEY, indices=indices)[0])
    whole = run(x, jnp.arange(64))
    np.testing.assert_allclose(run(x[11:12], jnp.arange(11, 12))[0], whole[11], atol=2e-4)
    mesh = Mesh(np.array(jax.devices()[:8]), "data")
    spread = NamedSharding(mesh, PartitionSpec("data"))
    split = run(jax.device_put(x, spread), jax.device_put(jnp.arange(64), spread))
    assert len(split.sharding.device_set) == 8
    np.testing.assert_allclose(split, whole, atol=2e-4)
    assert np.abs(np.asarray(run(x, jnp.arange(64, 128)) - whole)).max() > 0.01  # other indices, other noise


def test_nothing_recompiles_when_values_change():
    solver, traces = SOLVERS["unipc"](RECTIFIED), []

    def network(params, x, t, cond):
        traces.append(1)
        return params["w"] * x

    @jax.jit
    def run(params, x, times, scale):
        denoise = make_denoiser(network, params, RECTIFIED, prediction="v")
        plain = make_denoiser(network, {"w": 0.0}, RECTIFIED, prediction="v")
        return sample(classifier_free(denoise, plain, scale), solver, times, x, KEY)[0]

    x = jnp.ones((2, 3))
    run({"w": jnp.float32(0.5)}, x, jnp.linspace(1, 0, 9), 1.5)
    before = len(traces)
    run({"w": jnp.float32(0.7)}, x + 1, jnp.linspace(0.9, 0.1, 9), 3.0)
    assert len(traces) == before


@pytest.mark.parametrize("case", first_variants(ALL_CASES), ids=lambda case: case.label)
def test_a_program_holds_the_network_once(case):
    """Stages are scans, so compiling does not grow with them; another branch may hold it once more."""
    exact = DATA.denoiser(RECTIFIED)
    marked = lambda x, t: exact(jnp.tanh(x), t)  # the only tanh in the program
    solver, times = case.make(RECTIFIED), jnp.linspace(1, 0, 5)
    program = str(jax.make_jaxpr(lambda x: sample(marked, solver, times, x, KEY)[0])(jnp.ones((2, 2))))
    other = case.keywords.get("start") or case.name in ("predictor_corrector", "diffrax_step", "adaptive")
    assert 1 <= program.count("= tanh") <= (8 if other else 1)


def test_trace_is_what_the_observer_saw():
    times = jnp.linspace(1, 0, 6)
    x = jax.random.normal(KEY, (3, 2))
    observe = lambda x, now: (x, now.t, now.s, now.index)
    final, (xs, t, s, index) = sample(
        DATA.denoiser(RECTIFIED), SOLVERS["ddim"](RECTIFIED), times, x, KEY, observe=observe
    )
    np.testing.assert_array_equal(xs[-1], final)
    np.testing.assert_array_equal(t, times[:-1])
    np.testing.assert_array_equal(s, times[1:])
    np.testing.assert_array_equal(index, np.arange(5))


def test_progress_reports_every_step(capsys):
    times = np.linspace(1, 0, 6)
    sample(DATA.denoiser(RECTIFIED), SOLVERS["ddim"](RECTIFIED), times, jnp.ones((1, 2)), KEY, observe=progress(times))
    jax.effects_barrier()
    assert "5/5" in capsys.readouterr().err


def test_half_precision_is_raised_to_float32():
    x = jnp.ones((2, 2), jnp.bfloat16)
    got, _ = sample(DATA.denoiser(RECTIFIED), SOLVERS["dpmpp_2m"](RECTIFIED), jnp.linspace(1, 0, 4), x, KEY)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize(
    "case", first_variants([case for case in ODE_CASES if case.name != "edm"]), ids=lambda case: case.label
)
def test_gradients_flow_through_a_sampler(case):
    """From pure noise to clean, where branches that are not taken are full of infinities."""
    solver, times = case.make(RECTIFIED), jnp.linspace(1, 0, 5)

    def loss(shift, x):
        denoise = lambda x, t: DATA.denoiser(RECTIFIED)(x + shift, t)
        return sample(denoise, solver, times, x, KEY)[0].sum()

    slope = jax.grad(loss)(0.0, jax.random.normal(KEY, (3, 2)))
    assert np.isfinite(slope) and slope != 0


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "dpmpp_2s", "dpmpp_2m", "unipc", "lms"])
def test_encoding_and_back(x64, name):
    """Forward and backward along a grid return the data, with the error of the solver's order."""
    schedule = laws.SCHEDULE_CASES["linear_beta"]()
    solver, denoise = SOLVERS[name](schedule), DATA.denoiser(schedule)
    x0 = DATA.draw(KEY, 16)
    errors = []
    for steps in (64, 128):
        times = schedule.time(jnp.linspace(-6, 6, steps + 1))

        @jax.jit
        def there_and_back(x0, times):
            latent, _ = encode(denoise, solver, times, x0)
            return sample(denoise, solver, times, latent, KEY)[0]

        errors.append(float(jnp.sqrt(jnp.mean((there_and_back(x0, times) - x0) ** 2))))
    assert errors[1] < 0.05
    assert np.log2(errors[0] / errors[1]) > solver.order - 0.35, errors


BAD_GRIDS = [
    (np.array([1.0]), "at least 2"),
    (np.array([[1.0, 0.0]]), "one row"),
    (np.array([1.0, 0.5, 0.5, 0.0]), "strictly"),
    (np.array([1.0, 0.2, 0.4, 0.0]), "strictly"),
    (np.array([1.2, 0.5, 0.0]), r"\[0, 1\]"),
    (np.array([1.0, np.nan, 0.0]), r"\[0, 1\]"),
]


@pytest.mark.parametrize(("times", "message"), BAD_GRIDS)
def test_bad_grids_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        sample(DATA.denoiser(RECTIFIED), SOLVERS["ddim"](RECTIFIED), times, jnp.ones((1, 2)), KEY)


BAD_SOLVERS = [
    ("unipc", {"order": 4}, "orders 1 to 3; got 4"),
    ("unipc", {"variant": "bh3"}, "Known: bh1, bh2"),
    ("deis", {"order": 5}, "orders 1 to 4; got 5"),
    ("deis", {"variable": "tme"}, "Did you mean 'time'"),
    ("deis", {"start": "rk5"}, "Did you mean 'rk4'"),
    ("lms", {"order": 0}, "orders 1 to 4; got 0"),
    ("ipndm", {"order": 9}, "orders 1 to 4; got 9"),
    ("heun", {"variable": "sgima"}, "Did you mean 'sigma'"),
    ("ancestral", {"eta": 1.5}, r"in \[0, 1\]"),
    ("ddpm", {"variance": "fixed_smal"}, "Did you mean 'fixed_small'"),
    ("euler_maruyama", {"diffusion": "growht"}, "Did you mean 'growth'"),
    ("euler_maruyama", {"scale": -1.0}, "not be negative"),
    ("edm", {"churn": -1.0}, "not be negative"),
    ("predictor_corrector", {"predictor": "lms"}, "unknown predictor"),
    ("predictor_corrector", {"corrections": 0}, "at least 1"),
    ("annealed_langevin", {"size": 0.0}, "greater than 0"),
    ("adaptive", {"rtol": 0.0}, "greater than 0"),
    ("adaptive", {"method": "Tsit6"}, "Did you mean 'Tsit5'"),
]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("start", laws.quick([None, *sorted(ONE_STEP)], None, "heun", "rk4"))
def test_any_start_gives_the_order_it_claims_room_for(variant, start):
    """A start of order q leaves a local error of h^(q+1), so no more than q + 1 is claimed."""
    solver = SOLVERS["unipc"](RECTIFIED, order=3, variant=variant, start=start)
    assert solver.order == min(3, ONE_STEP[start](RECTIFIED).order if start else 2) + 1
    lms = SOLVERS["lms"](RECTIFIED, order=4, start=start)
    assert lms.order == min(4, (ONE_STEP[start](RECTIFIED).order if start else 1) + 1)
    x, times = jax.random.normal(KEY, (4, 2)), jnp.linspace(0.9, 0.1, 9)
    for each in (solver, lms):
        assert np.all(np.isfinite(sample(DATA.denoiser(RECTIFIED), each, times, x, KEY)[0]))


@pytest.mark.parametrize("variable", sorted(POSITIONS))
def test_deis_finds_the_flow_in_every_variable(x64, variable):
    schedule = laws.SCHEDULE_CASES["linear_beta"]()
    x, solver = start(schedule, DATA, 0.8, 8), SOLVERS["deis"](schedule, variable=variable)
    got, _ = jax.jit(lambda x: sample(DATA.denoiser(schedule), solver, jnp.linspace(0.8, 0.2, 161), x, KEY))(x)
    np.testing.assert_allclose(got, DATA.flow(schedule, x, 0.8, 0.2), atol=2e-3)


@pytest.mark.parametrize(("name", "keywords", "message"), BAD_SOLVERS)
def test_bad_solvers_are_refused_at_construction(name, keywords, message):
    with pytest.raises(ValueError, match=message):
        SOLVERS[name](RECTIFIED, **keywords)


def test_a_stochastic_solver_does_not_encode():
    with pytest.raises(ValueError, match="use an ODE solver"):
        encode(DATA.denoiser(RECTIFIED), SOLVERS["ancestral"](RECTIFIED), np.linspace(0.9, 0.1, 5), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="end it inside the schedule's span"):
        encode(DATA.denoiser(RECTIFIED), SOLVERS["ddim"](RECTIFIED), np.linspace(0.9, 0.0, 5), jnp.ones((1, 2)))


def test_only_an_ode_solver_runs_a_rising_grid():
    rising = np.linspace(0.1, 0.9, 5)
    with pytest.raises(ValueError, match="only an ODE solver"):
        sample(DATA.denoiser(RECTIFIED), SOLVERS["ancestral"](RECTIFIED), rising, jnp.ones((1, 2)), KEY)
    with pytest.raises(ValueError, match="give the falling grid"):
        encode(DATA.denoiser(RECTIFIED), SOLVERS["ddim"](RECTIFIED), rising, jnp.ones((1, 2)))


def test_churn_stays_on_the_path():
    """Where the path ends, the noise level cannot be raised: the denoiser meets neither later times nor more noise."""
    schedule, met = laws.SCHEDULE_CASES["alpha_bar"](), []
    data = gaussian(jnp.zeros(2), jnp.ones(2))
    exact = data.denoiser(schedule)

    def watched(x, t):
        jax.debug.callback(lambda t, spread: met.append((float(t), float(spread))), t, jnp.std(x))
        return exact(x, t)

    x = jax.random.normal(KEY, (2000, 2))
    sample(watched, SOLVERS["edm"](schedule, churn=100.0), jnp.linspace(1, 0, 9), x, KEY)
    jax.effects_barrier()
    assert all(t <= schedule.span[1] and abs(spread - 1) < 0.1 for t, spread in met)


@pytest.mark.parametrize("path", laws.ENDS_IN_NOISE)
@pytest.mark.parametrize("diffusion", ["growth", "reverse_sde"])
def test_euler_maruyama_is_finite_from_pure_noise(path, diffusion):
    schedule = laws.SCHEDULE_CASES[path]()
    solver = SOLVERS["euler_maruyama"](schedule, diffusion=diffusion)
    x = jax.random.normal(KEY, (8, 2))
    assert np.all(np.isfinite(sample(DATA.denoiser(schedule), solver, jnp.linspace(1, 0, 8), x, KEY)[0]))


@pytest.mark.parametrize("path", laws.ENDS_IN_NOISE)
def test_a_velocity_network_is_finite_from_pure_noise(path):
    schedule = laws.SCHEDULE_CASES[path]()
    denoise = make_denoiser(lambda params, x, t, cond: 0.5 * x, {}, schedule, prediction="velocity")
    x = jax.random.normal(KEY, (8, 2))
    assert np.all(np.isfinite(sample(denoise, SOLVERS["ddim"](schedule), jnp.linspace(1, 0, 8), x, KEY)[0]))


def test_learned_variance_interpolates_the_two_of_ddpm():
    """A network that asks for the small variance samples as fixed_small does, and one for the large as fixed_large."""
    schedule = laws.SCHEDULE_CASES["linear_beta"]()
    exact, times = DATA.denoiser(schedule), jnp.linspace(1, 0, 8)
    x = start(schedule, DATA, 1.0, 8)
    for ask, variance in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        network = lambda params, x, t, cond, ask=ask: jnp.concatenate([exact(x, t).eps, jnp.full_like(x, ask)], -1)
        denoise = make_denoiser(network, {}, schedule, prediction="learned_variance")
        learned, fixed = (
            sample(d, SOLVERS["ddpm"](schedule, variance=kind), times, x, KEY)[0]
            for d, kind in ((denoise, "learned"), (exact, variance))
        )
        np.testing.assert_allclose(learned, fixed, rtol=1e-4, atol=1e-4)
