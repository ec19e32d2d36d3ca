"""What every config starts from. A config changes values here and adds what only it needs.

An entry with a name is a part: the name is looked up in its room's table, the rest are its keywords. Every keyword
with a default that is worth changing is written out, so that it can be changed from the command line.
"""

from typing import Any

from ml_collections import ConfigDict

MODES = ("", "smoke")
INHERITED = ("schedule", "pace", "input", "network", "latent", "text", "loss", "cond")


def get_config(mode: str = "") -> Any:
    """Return the defaults of every config: a path, and how to sample it."""
    if mode not in MODES:
        raise ValueError(f"unknown mode '{mode}' of a config. Known: {', '.join(filter(None, MODES))}.")
    config: Any = ConfigDict()
    config.seed = 0
    config.schedule = {"name": "linear_beta", "beta_min": 0.1, "beta_max": 20.0}
    config.pace = {"name": "shift", "factor": 1.0}  # a factor of 1 changes nothing
    config.sampling = ConfigDict()
    config.sampling.grid = {"name": "uniform", "start": 1.0, "end": 0.0}
    config.sampling.steps = 32
    config.sampling.solver = {"name": "dpmpp_2m"}
    return config


def get_training(mode: str = "") -> Any:
    """Return the defaults of configs that train: those above, and what a run needs besides."""
    config = get_config(mode)
    config.expects = {}  # what the data are like, such as {"x": (32, 32, 3), "dtype": "uint8", "classes": 10}
    config.cond = ()  # entries of an example that the network is told, such as ("label",)
    config.text = {"name": "words"}  # what makes captions into what a network is told: the transform, or an encoder
    config.latent = {"name": "none"}  # or the autoencoder whose latents the data are: samples are then decoded
    config.start = {"name": "scratch"}  # or other parameters to begin with: {"name": "run", "folder": ...}
    config.adapter = {"name": "none"}  # or what is trained beside a network that is held, as lora
    config.input = {"name": "plain"}
    config.loss = {
        "name": "denoising",
        "prediction": {"name": "velocity"},
        "weighting": {"name": "constant"},
        "times": {"name": "uniform"},
    }

    config.training = ConfigDict()
    config.training.steps = 1000
    config.training.batch_size = 128  # of all devices and hosts together
    config.training.parts = 1  # in which the batch is met, one after another, to save memory
    config.training.optimizer = {"name": "adam", "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    config.training.rate = {"name": "constant", "peak": 1e-3, "warmup": 0}
    config.training.clip = 0.0  # bounds the norm of the gradient; 0 does not
    config.training.averages = {"ema": {"name": "constant", "decay": 0.999}}
    config.training.mapping = "jit"  # or "pmap", for data parallelism alone
    config.training.mesh = {"data": -1, "fsdp": 1, "tensor": 1}  # devices along each axis; -1 takes what is left
    config.training.workers = 0  # processes that read data; 0 reads in threads
    config.training.log_every = 100
    config.training.save_every = 1000
    config.training.keep_last = 2
    config.training.keep_every = 0  # steps; those are kept for good
    config.training.sample_every = 0  # the last step is always sampled
    config.training.snapshot_every = 0  # of averages named power, for post-hoc lengths
    config.training.most_in_a_row = 10  # non-finite steps after which the run ends
    config.training.tensorboard = True
    config.training.wandb = ""  # the project of weights and biases to tell as well

    config.evaluation = ConfigDict()  # while training; see `python -m diffusion_jax evaluate --help`
    config.evaluation.every = 0  # steps; 0 measures at no step, and at the end only if there are settings
    config.evaluation.settings = ()  # of sampling, to measure under each, as ({'steps': 5}, {'steps': 10})
    config.evaluation.metrics = ("fid",)
    config.evaluation.samples = 10_000
    config.evaluation.reference = ""  # the data trained on
    config.evaluation.features = {"name": "inception"}

    config.sampling.guidance = {"name": "none"}
    config.sampling.threshold = {"name": "none"}  # or static, dynamic: keeps the estimated data in its range
    config.sampling.returned = "x"  # or "x0": the data estimated from it, for paths that end in some noise
    config.sampling.average = "ema"  # or "params" for none, or a number: the width of a post-hoc average
    config.sampling.count = 64
    config.sampling.batch_size = 64
    config.sampling.seed = 0
    config.sampling.label = -1  # one class alone; at -1 all take turns, or those of the hints
    config.sampling.captions = ("",)  # these take turns, in models that are told text; () are those of the hints
    config.sampling.negative = ""  # what guidance's unconditional half is told instead
    config.sampling.hints = {}  # the source of what steers samples where an adapter reads hints; by default the data
    config.sampling.size = ()  # (height, width) in pixels, of networks that take others than those of training
    return config


def get_finetuning(mode: str = "", *, folder: str) -> Any:
    """Return the defaults of configs that begin from a run: its model, its grid, its solver, they inherit."""
    config = get_training(mode)
    with config.ignore_type():  # entries become names of what they will be
        for entry in INHERITED:
            config[entry] = {"name": "inherited"}
        for entry in ("grid", "solver", "guidance", "threshold"):
            config.sampling[entry] = {"name": "inherited"}
    config.start = {"name": "run", "folder": folder}
    config.training.optimizer = {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    config.training.clip = 1.0
    return config


def shrink_finetuning(config: Any, *entries: str) -> None:
    """Take a small model of pixels and words that begins anew for what is inherited; the data have these `entries`."""
    anew = get_training("smoke")
    with config.ignore_type():
        for entry in (*INHERITED, "start", "sampling"):
            config[entry] = anew.get(entry, {})
    config.network = {"name": "unet", "groups": 4, "mixer": "transformer"}
    shrink(config, width=8, multipliers=(1,), depth=1, attention=(16,))
    config.data = {"name": "shapes", "side": 16, "entries": ("x", "caption", *entries)}
    config.cond = ("text", "text_mask")
    config.sampling.guidance = {"name": "classifier_free", "scale": 3.0}


def shrink(config: Any, **network: Any) -> None:
    """Make the same parts finish in seconds: embedded shapes, the `network` given, a few steps."""
    config.data = {"name": "shapes", "side": 16}
    config.expects = {}
    config.network.update(network)
    config.training.update(steps=2, batch_size=8, log_every=1)
    config.training.averages = {"ema": {"name": "constant", "decay": 0.5}}
    config.sampling.update(steps=2, count=12, batch_size=12)
