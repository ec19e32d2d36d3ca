"""What a plan says a training step reaches at most, beside what it reaches, on the devices at hand.

    python experiments/benchmarks/bound.py --configs imagenet256_dit:64 cifar10_edm:128 --steps 20

The step of each config is compiled as `plan` compiles it, with a batch of the size after the colon, and run with
parameters away from their start, where gates of zero would spare the devices much of the work. A step that is faster
than its bound would prove the plan wrong, and memory beyond what was planned likewise.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax.config import changed, load_config
from diffusion_jax.data.blank import blank
from diffusion_jax.experiment import make_training, start
from diffusion_jax.launch.plan import make_plan
from diffusion_jax.launch.work import training_work
from diffusion_jax.prompts import hear
from diffusion_jax.training.loop import compiled
from diffusion_jax.training.parallel import make_mesh, parallelize
from diffusion_jax.training.step import make_train_step

NOISE = 0.02  # added to each parameter


def reached(config: Any, steps: int) -> dict[str, Any]:
    """Run the step of a config and return its seconds, images a second, loss, and the most memory in use."""
    part = config.training
    training = make_training(config, source=blank(config.expects))
    make_step = partial(make_train_step, training.loss_fn, training.optimizer, training.averages, parts=part.parts)
    parallel = parallelize(make_step, make_mesh(sizes=part.mesh))
    begun = start(config, training)
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(begun.params)))
    noisy = jax.tree.map(
        lambda leaf, key: leaf + NOISE * jax.random.normal(key, leaf.shape, leaf.dtype),
        begun.params,
        jax.tree.unflatten(jax.tree.structure(begun.params), list(keys)),
    )
    state = parallel.put_state(begun._replace(params=noisy))
    del begun, noisy
    batch: Any = hear(training.model.prompts, next(training.batches.iterate(0)), training.model.told)
    random = np.random.default_rng(0)
    batch = parallel.put_batch({**batch, "x": random.normal(size=batch["x"].shape).astype(np.float32)})
    run, _ = compiled(parallel.step, state, batch)
    metrics, seconds = {}, []
    for _ in range(3):
        state, metrics = jax.block_until_ready(run(state, batch))
    for _ in tqdm(range(3), desc="thirds"):
        begin = time.perf_counter()
        for _ in range(max(steps // 3, 1)):
            state, metrics = run(state, batch)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - begin) / max(steps // 3, 1))
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    step = float(np.median(seconds))
    return {
        "seconds": step,
        "from": min(seconds),
        "to": max(seconds),
        "per_second": part.batch_size / step,
        "loss": float(jnp.mean(metrics["loss"])),
        "peak_bytes": used,
    }


def main() -> None:
    """Hold the plan of each config against its step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["imagenet256_dit:64"], metavar="NAME:BATCH")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of each config")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    cache = tempfile.TemporaryDirectory()  # a plan and its step are one program
    jax.config.update("jax_compilation_cache_dir", cache.name)
    for name in arguments.configs:
        name, _, batch = name.partition(":")
        config: Any = load_config(f"configs/{name}.py").copy_and_resolve_references().unlock()
        config.training.update(batch_size=int(batch), workers=0)
        config = changed(config, dict(pair.split("=", 1) for pair in arguments.set))
        plan = make_plan(training_work(config, jax.devices()), largest=False)
        found = reached(config, arguments.steps)
        if plan.rate is not None and plan.chip is not None:
            found |= {"at_most": plan.rate, "share_of_bound": found["per_second"] / plan.rate, **plan.times}
            found["share_of_peak"] = plan.found.flops / found["seconds"] / plan.chip.flops
        found |= {"needed_bytes": plan.found.needed, "compiled_in": plan.found.seconds}
        print(json.dumps({"config": name, "batch": int(batch), "where": plan.where, **found}), flush=True)
    cache.cleanup()


if __name__ == "__main__":
    main()
