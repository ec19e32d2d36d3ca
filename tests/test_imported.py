"""Other people's models as runs: what is imported, what is drawn from it, and what is refused."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.cli.main import run
from diffusion_jax.codecs import CODECS, make_codec
from diffusion_jax.config import changed
from diffusion_jax.data.source import Info
from diffusion_jax.denoisers.precondition import INPUTS
from diffusion_jax.denoisers.threshold import THRESHOLDS
from diffusion_jax.imported import parts_of, read_imported, write_imported
from diffusion_jax.naming import choose
from diffusion_jax.pretrained.clip import load_clip_text
from diffusion_jax.pretrained.held import held
from diffusion_jax.pretrained.schedulers import SCHEDULERS, read_scheduler
from diffusion_jax.pretrained.unet import load_unet
from diffusion_jax.pretrained.vae import load_vae
from diffusion_jax.pretrained.vq import load_vq
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.pace import PACES
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.prompts import PROMPTS, make_prompts, told_for
from diffusion_jax.sampler import conditions, make_sampler
from diffusion_jax.samples import check_sampling
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.trained import load
from experiments.parity import pipelines as parity
from tests import pipelines
from tests.pretrained.folders import stored, write

IMAGES = Info("images", {"x": (16, 16, 3)})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("pipeline") / "sd")


@pytest.fixture(scope="module")
def workdir(source, tmp_path_factory):
    """The run that the command makes of it."""
    folder = tmp_path_factory.mktemp("runs") / "sd"
    assert run(["import_weights", "--from", str(source), "--to", str(folder)]) == 0
    return folder


def told_by(model, count) -> Any:
    """What the first samples of a model are told."""
    return conditions(model.config, model.model, np.arange(count))


def under(model, **sampling) -> Any:
    """The same model with other values of `sampling`."""
    config = model.config.copy_and_resolve_references()
    config.sampling = changed(config.sampling, sampling)
    return model._replace(config=config)


def test_a_run_at_step_0_holds_the_parameters_and_says_what_is_beside_them(source, workdir):
    model = load(workdir)
    jax.tree.map(np.testing.assert_array_equal, model.params, load_unet(source / "unet").params)
    assert model.step == 0 and model.info.shapes == {"x": (8, 8, 4)}
    config = model.config
    assert config.latent.folder == str(source / "vae") and len(config.latent.hash) == 16
    assert config.cond == ("text",) and model.model.told["text"].shape == (16, 24)
    assert config.loss.prediction.name == "eps" and config.schedule.world.name == "scaled_linear"
    assert config.sampling.grid.offset == 1 and config.sampling.grid["last"] == 0


def test_prompts_are_told_as_clip_reads_them_and_what_is_cut_is_said(source):
    prompts = make_prompts({"name": "clip", "folder": str(source)}, IMAGES)
    with pytest.warns(UserWarning, match="what is cut is 'op'"):
        found = told_for(prompts, ["ab", "abcdefghijkl mn op", "ab"])["text"]
    network = load_clip_text(source / "text_encoder")
    letters = ["a", "b</w>"]
    vocabulary = json.loads((source / "tokenizer" / "vocab.json").read_text())
    ids = [98, *(vocabulary[letter] for letter in letters), *[99] * 13]
    wanted = jax.jit(network.apply)(network.params, jnp.asarray([ids])).tokens[0]
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[1] - found[0]).max() > 0.1


def test_prompts_change_what_is_drawn_and_compile_nothing(workdir):
    compiled: dict[str, Any] = {}
    drawn = {}
    for captions, negative, scale in (("ab",), "", 7.5), (("cd",), "", 7.5), (("ab",), "cd", 7.5), (("ab",), "", 3.0):
        model = under(load(workdir), captions=captions, negative=negative, steps=2, **{"guidance.scale": scale})
        draw = make_sampler(model.config, model.model, model.info, compiled=compiled)
        told = conditions(model.config, model.model, np.arange(2))
        drawn[captions[0], negative, scale] = draw(model.params, jax.random.key(0), jnp.arange(2), told)
    ((program,),) = [compiled.values()]
    assert program._cache_size() == 1
    first, *others = drawn.values()
    assert first.shape == (2, 16, 16, 3)
    assert all(np.abs(first - other).max() > 1e-4 for other in others)


def test_what_is_beside_a_network_can_stay_on_the_host_or_be_of_half_precision(source, tmp_path):
    drawn, lying, embedding = {}, {}, (100, 24)  # a parameter of the text encoder, and of nothing else
    asked = {
        "offload": {"offload": True},
        "half": {"text_dtype": "bfloat16", "latent_dtype": "bfloat16"},
        "plain": {},
    }
    held.cache_clear()
    for name, how in asked.items():
        write_imported(read_imported(source, **how), tmp_path / name)
        model = under(load(tmp_path / name), captions=("ab",), steps=2)
        draw = make_sampler(model.config, model.model, model.info)
        drawn[name] = np.asarray(draw(model.params, jax.random.key(0), jnp.arange(1), told_by(model, 1)))
        lying[name] = sum(array.shape == embedding for array in jax.live_arrays())
    np.testing.assert_array_equal(drawn["plain"], drawn["offload"])
    assert 1e-4 < np.abs(drawn["plain"] - drawn["half"]).max() < 0.1 < np.ptp(drawn["plain"])
    assert lying == {"offload": 0, "half": 1, "plain": 2}
    with pytest.raises(ValueError, match="unknown dtype of import_weights, --text_dtype 'float16'"):
        read_imported(source, text_dtype="float16")
    with pytest.raises(ValueError, match="unknown dtype of import_weights, --latent_dtype 'half'"):
        read_imported(source, latent_dtype="half")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((16, 23), r"\(16, 23\); .* multiples of 2, which is a pixel of the latents"),
        ((16, 18), "which the network does not take: unet: x is 8 by 9"),
        ((16,), "a height and a width"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(workdir, size, words):
    with pytest.raises(ValueError, match=words):
        check_sampling(under(load(workdir), size=size))


def test_a_ddpm_is_a_run_without_anything_beside_it(tmp_path):
    imported = read_imported(pipelines.ddpm(tmp_path / "ddpm"))
    config = imported.config
    assert imported.info.shapes == {"x": (16, 16, 3)} and config.cond == () and config.latent.name == "none"
    assert config.sampling.solver.to_dict() == {"name": "ddpm", "variance": "fixed_small"}
    assert config.sampling.threshold.to_dict() == {"name": "static", "limit": 1.0}
    assert config.sampling.guidance.name == "none"


def refused(tmp_path, source, change, words):
    folder = tmp_path / "sd"
    shutil.copytree(source, folder)
    change(folder)
    with pytest.raises(ValueError, match=words):
        imported = read_imported(folder)
        write_imported(imported, tmp_path / "run")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "model_index.json").unlink(), "neither model_index.json nor config.json"),
        (lambda f: edit(f / "model_index.json", _class_name="StableAudioPipeline"), "unknown pipeline of .*sd"),
        (lambda f: edit(f / "unet" / "config.json", _class_name="UNet3DConditionModel"), "it must be of"),
        (lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="TCDScheduler"), "unknown scheduler"),
        (lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_schedule="laplace"), "not known: 'laplace'"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "neither tokenizer.json nor vocab.json"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "vae has no model.safetensors"),
        (
            lambda f: write(f / "text_encoder", *stored("clip_tiny.npz")),
            "tokenizer has 100 tokens, and what reads them knows 50",
        ),
    ],
    ids=["index", "pipeline", "network", "scheduler", "betas", "tokenizer", "weights", "width"],
)
def test_what_is_not_known_or_not_there_is_refused(tmp_path, source, change, words):
    refused(tmp_path, source, change, words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "model_index.json names no parts of a pipeline"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "model_index.json has no _class_name"),
        ({"_class_name": ["StableDiffusionPipeline"]}, "model_index.json has no _class_name"),
        ({"_class_name": "DiTPipeline", "id2label": "tench"}, "has no names by number in id2label"),
        ({"_class_name": "DiTPipeline", "x": []}, r"model_index.json has x=\[\]; a part is \[library, class\]"),
        ({"_class_name": "DiTPipeline", "x": [None, "UNet"]}, r"has x=\[None, 'UNet'\]"),
        ({"_class_name": "DiTPipeline", "../vae": ["diffusers", "VQModel"]}, "has a part '../vae'; a part is a folder"),
        ({"_class_name": "DiTPipeline", "..": ["diffusers", "VQModel"]}, r"has a part '\.\.'"),
        ({"_class_name": "DiTPipeline", "/vae": ["diffusers", "VQModel"]}, "has a part '/vae'"),
    ],
    ids=str,
)
def test_an_index_that_is_damaged_is_refused(tmp_path, values, words):
    (tmp_path / "model_index.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words):
        parts_of(tmp_path)


def without(part):
    return lambda folder: edit(folder / "model_index.json", **{part: [None, None]})


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (pipelines.stable_diffusion, without("text_encoder"), "names no text_encoder, or says that it is null"),
        (pipelines.stable_diffusion, without("vae"), "names no vae or vqvae, or says that it is null"),
        (pipelines.stable_diffusion, without("scheduler"), "names no scheduler, or says"),
        (pipelines.stable_diffusion, without("unet"), "names no unet or transformer"),
        (pipelines.stable_diffusion_3, without("text_encoder_2"), "no text_encoder_2, .*3Pipeline needs it"),
        (pipelines.stable_diffusion_3, without("image_encoder"), "the parts are not of one pipeline"),
        (
            pipelines.stable_diffusion,
            lambda f: (f / "text_encoder" / "config.json").unlink(),
            "names text_encoder, and there is no .*text_encoder/config.json",
        ),
        (
            pipelines.stable_diffusion,
            lambda f: (f / "scheduler" / "scheduler_config.json").write_text("[1]"),
            "scheduler_config.json has no _class_name",
        ),
    ],
    ids=["text", "vae", "scheduler", "network", "second", "other", "config", "list"],
)
def test_a_pipeline_without_a_part_says_which(tmp_path, make, change, words):
    change(make(tmp_path / "pipeline"))
    with pytest.raises(ValueError, match=words):
        read_imported(tmp_path / "pipeline")


def test_the_autoencoder_of_latent_diffusion_is_called_vqvae(tmp_path):
    folder = tmp_path / "ldm"
    shutil.copytree(pipelines.MODELS / "unet2d_ddpm", folder / "unet")
    write(folder / "vqvae", *stored("vq_tiny.npz"), "diffusion_pytorch_model.safetensors")
    pipelines.schedule(folder / "scheduler", "DDIMScheduler")
    kinds = {"unet": "UNet2DModel", "vqvae": "VQModel", "scheduler": "DDIMScheduler"}
    pipelines.index(folder, "LDMPipeline", kinds)
    latent = read_imported(folder).config.latent
    assert (latent.name, latent.folder) == ("vq", str(folder / "vqvae"))


def test_files_that_changed_are_refused(tmp_path):
    shutil.copytree(pipelines.MODELS / "vae_sd", tmp_path / "vae")
    codec = make_codec({"name": "vae", "folder": str(tmp_path / "vae"), "hash": "0123456789abcdef"})
    assert codec is not None and codec.factor == 2
    with pytest.raises(ValueError, match="other files than when this run was made .* was 0123456789abcdef"):
        codec.params()


def test_a_folder_with_a_run_is_left(source, workdir, capsys):
    assert run(["import_weights", "--from", str(source), "--to", str(workdir)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run(["import_weights", "--from", str(source)]) == 2
    assert "Give --from and --to" in capsys.readouterr().err
    assert run(["import_weights", "--from", str(source), "--to", str(source / "model_index.json")]) == 2
    assert "model_index.json is a file; give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--side", "-8"), "--side is -8; it must be 1 or more"),
        (("--batch_size", "-1"), "--batch_size is -1; it must be 1 or more"),
        (("--out", "gone/x.npz"), "--out is gone/x.npz; it must be a file in a folder that is there; make gone."),
        (("--out", "x.csv"), "it must end in .array_record or .npz"),
    ],
)
def test_encoding_to_nowhere_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, given, words):
    monkeypatch.chdir(tmp_path)
    asked = ["--latent", "gone", "--data", "digits", "--side", "8", "--out", "x.npz"]
    assert run(["encode", *asked, *given]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_codec_is_its_autoencoder_with_the_statistics_of_its_latents(tmp_path, name):
    spec: dict[str, Any] = {"name": name}
    if name == "none":
        assert make_codec(spec) is None
        return
    if name == "vae":
        folder, read = pipelines.MODELS / "vae_sd", load_vae
    else:
        folder = write(tmp_path, *stored("vq_tiny.npz"), "diffusion_pytorch_model.safetensors")
        read = load_vq
    codec, network = make_codec(spec | {"folder": str(folder)}), read(folder)
    assert codec is not None
    x = np.random.default_rng(0).normal(size=(1, 8, 8, codec.channels)).astype(np.float32)
    encoded = jax.jit(lambda params, x: codec.ways(params).encode(x))(codec.params(), x)
    assert encoded.shape[1] == 8 // codec.factor
    z = jax.jit(network.encode)(network.params, x)
    z = np.asarray(z.mean if name == "vae" else z) / np.asarray(network.std)[None, None, None]
    np.testing.assert_allclose(encoded, z, rtol=1e-4, atol=1e-4)


READERS: dict[str, dict[str, Any]] = {
    "clip": {"folder": "sd"},
    "clip_pair": {"folder": "pair", "waves": 8},
    "clip_t5": {"folder": "three", "length": 6},
    "t5_clip": {"folder": "two", "length": 6},
}


@pytest.fixture(scope="module")
def encoders(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    made = {"pair": "", "three": "_3", "two": "_2"}
    folders = {name: pipelines.encoders(root / name, t5=end) for name, end in made.items()}
    return folders | {"sd": source}


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_every_way_of_reading_prompts_tells_what_it_says_and_alike_captions_alike(encoders, name):
    spec = {"name": name, **READERS.get(name, {})}
    if "folder" in spec:
        spec["folder"] = str(encoders[spec["folder"]])
    info = IMAGES._replace(shapes={"x": (16, 16, 3), "text": (16, 24), "text_mask": (16,)})
    prompts = make_prompts(spec, info)
    found = told_for(prompts, ["ab cd", "ab", "ab cd", ""])
    for entry, shape in ({"text": (16, 24)} if name == "words" else prompts.shapes).items():
        assert found[entry].shape == (4, *shape)
        np.testing.assert_array_equal(found[entry][0], found[entry][2])
        assert np.abs(found[entry][0] - found[entry][1]).max() > 1e-3
    if name == "clip_pair":
        assert np.abs(found["text"][3]).max() == 0 and np.abs(found["pooled"][3, :16]).max() == 0
        assert np.abs(found["pooled"][3, 16:]).max() == 1


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_is_a_path_a_grid_and_a_solver_of_ours(tmp_path, name):
    karras = {"timestep_spacing": "trailing", "use_karras_sigmas": "Multistep" in name}
    for number, change in enumerate(({}, karras)):
        pipelines.schedule(tmp_path / str(number), name, **change)
        recipe = read_scheduler(tmp_path / str(number))
        schedule = choose(PACES, recipe.pace, "pace", choose(SCHEDULES, recipe.schedule, "schedule"))
        times = choose(GRIDS, recipe.grid, "grid", schedule, 5)
        assert len(times) == 6 and times[-1] == 0
        choose(SOLVERS, recipe.solver, "solver", schedule)
        choose(INPUTS, recipe.input, "input", None, schedule)
        choose(THRESHOLDS, recipe.threshold, "threshold", None, schedule)


STEPS, FLOW = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (STEPS, {"algorithm_type": "dpmsolver"}, r"algorithm_type='dpmsolver'; known is 'dpmsolver\+\+'"),
        (STEPS, {"algorithm_type": "sde-dpmsolver"}, "algorithm_type='sde-dpmsolver'; known"),
        (STEPS, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "a value that is not known: 3"),
        (STEPS, {"solver_order": []}, "a value that is not known"),
        (STEPS, {"solver_type": "heun"}, "solver_type='heun'; known is 'midpoint'"),
        (STEPS, {"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min'; known is 'zero'"),
        (STEPS, {"use_lu_lambdas": True}, "use_lu_lambdas=True; known is False"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'; known is 'discrete'"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0=False; known is True"),
        ("DDPMScheduler", {"variance_type": "learned"}, "variance_type='learned'; known is .* or 'learned_range'"),
        ("DDIMScheduler", {"trained_betas": [0.1], "rescale_betas_zero_snr": True}, "known is one of them"),
        ("DDIMScheduler", {"trained_betas": 0.1}, "a value that is not known"),
        (FLOW, {"use_karras_sigmas": True}, "use_karras_sigmas=True; known is False"),
        (FLOW, {"shift_terminal": 0.1}, "shift_terminal=0.1; known is None"),
    ],
)
def test_what_a_scheduler_asks_for_and_is_not_known_is_refused(tmp_path, name, change, words):
    pipelines.schedule(tmp_path / "scheduler", name, **change)
    with pytest.raises(ValueError, match=f"scheduler_config.json.* {words}"):
        read_scheduler(tmp_path / "scheduler")


def test_solvers_are_those_that_a_scheduler_names(tmp_path):
    cases = [
        (STEPS, {"algorithm_type": "sde-dpmsolver++"}, {"name": "dpmpp_2m_sde"}),
        (STEPS, {"algorithm_type": "deis", "solver_type": "bh2", "solver_order": 3}, {"name": "dpmpp_3m"}),
        ("UniPCMultistepScheduler", {"solver_type": "midpoint"}, {"name": "unipc", "order": 2, "variant": "bh2"}),
        ("DDPMScheduler", {"variance_type": "learned_range"}, {"name": "ddpm", "variance": "learned"}),
    ]
    for number, (name, change, solver) in enumerate(cases):
        pipelines.schedule(tmp_path / str(number), name, **change)
        assert read_scheduler(tmp_path / str(number)).solver == solver


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the caption .* is too long")  # as theirs is
@pytest.mark.parametrize("name", sorted(parity.CASES))
def test_a_whole_loop_is_that_of_diffusers(tmp_path, name):
    pytest.importorskip("diffusers")
    ours, theirs = parity.both(parity.CASES[name], tmp_path)
    assert np.abs(theirs).max() > 0.3
    np.testing.assert_allclose(ours, theirs, atol=5e-4 if name == "lms" else 1e-4)  # they integrate by quadrature
