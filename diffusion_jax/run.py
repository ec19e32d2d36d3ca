"""One run: from a config to a trained model in its folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax

from diffusion_jax import workdir
from diffusion_jax.assess import Question, make_request
from diffusion_jax.data.density import Density
from diffusion_jax.experiment import Training, at_least, check_start, make_training, start, state_shapes
from diffusion_jax.nets.network import count
from diffusion_jax.prompts import hear
from diffusion_jax.sampler import check_beside, check_hints, make_sampler
from diffusion_jax.samples import draw, picture
from diffusion_jax.sweep import prepare_settings
from diffusion_jax.trained import Trained, post_hoc_width, under
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.logbook import Logbook
from diffusion_jax.training.loop import Hook, Plan, train
from diffusion_jax.training.parallel import Parallel, check_batch, make_mesh, parallelize
from diffusion_jax.training.post_hoc import save_snapshot
from diffusion_jax.training.step import make_train_step
from diffusion_jax.truth import judge, surplus


class Run(NamedTuple):
    """A run that is built and not begun."""

    config: Any
    folder: Path
    training: Training
    parallel: Parallel
    compiled: dict[str, Any]  # its sampling programs
    answer: Callable | None  # what measures a model, where the config asks for it
    held: TextIO | None  # the folder is this run's until it is closed; the first host holds it for all


def prepare(config: Any, folder: Path) -> Run:
    """Build a run; whatever is wrong with it is said here, before anything is compiled or written."""
    part = config.training
    shard = jax.process_index(), jax.process_count()
    training = make_training(config, shard=shard)
    mesh = make_mesh(sizes=part.mesh)
    check_batch(part, mesh.shape)
    make_sampler(config, training.model, training.batches.info)  # says its errors, as does the next
    check_hints(config, training.model)
    check_beside(training.model)
    check_start(training)
    post_hoc_width(config)
    make_step = partial(make_train_step, training.loss_fn, training.optimizer, training.averages, parts=part.parts)
    if part.mapping == "pmap" and config.loss.get("times", {}).get("name") == "loss_adaptive":
        raise ValueError("loss-adaptive times remember the whole batch, which pmap never sees; take mapping=jit.")
    parallel = parallelize(make_step, mesh, mapping=part.mapping)
    put, model = parallel.put_batch, training.model
    parallel = parallel._replace(put_batch=lambda batch: put(hear(model.prompts, batch, model.told)))
    compiled: dict[str, Any] = {}
    answer = _prepare_evaluation(config, folder, training, compiled)
    held = workdir.open_workdir(folder, config) if jax.process_index() == 0 else None
    return Run(config, folder, training, parallel, compiled, answer, held)


def carry_out(run: Run) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint if there is one; return what the samples were measured at."""
    config, part, training, parallel = run.config, run.config.training, run.training, run.parallel
    checkpoints = Checkpoints(run.folder / "checkpoints", keep_last=part.keep_last, keep_every=part.keep_every or None)
    batches = training.batches.iterate(0)
    restored = checkpoints.restore(parallel.alike(state_shapes(config, training)))
    state = parallel.put_state(start(config, training) if restored is None else restored.state)
    if restored is not None:
        batches.set_state(restored.data)
    begun = parallel.get_state(state)
    step = int(begun.step)
    if jax.process_index() == 0:
        workdir.note_start(run.folder, step)
        _describe(run, begun.params)
    logbook = Logbook(run.folder, step=step, tensorboard=part.tensorboard, wandb=part.wandb)
    millions = count(begun.params) / 1e6
    del begun  # under pmap it is a copy
    logbook.say(f"{millions:.2f} million parameters on {jax.device_count()} device(s), from step {step}")
    about = {"config": workdir.plain(config), "versions": workdir.versions()}

    def save(state):
        checkpoints.save(parallel.get_state(state), batches.get_state(), about)

    hooks = [Hook(part.save_every, lambda state, step: save(state))]
    if part.snapshot_every:
        stds = {name: spec["std"] for name, spec in part.averages.items() if spec["name"] == "power"}
        hooks.append(Hook(part.snapshot_every, lambda state, step: _snap(run, state, step, stds)))
    if part.sample_every:
        hooks.append(Hook(part.sample_every, lambda state, step: _show(run, state, step, logbook), last=False))
    if run.answer is not None and config.evaluation.every:
        evaluate = partial(_evaluate, run, logbook=logbook)
        hooks.append(Hook(config.evaluation.every, evaluate, last=False))
    plan = Plan(part.steps, part.log_every, part.most_in_a_row, training.rate)
    try:
        state = train(state, parallel, batches, plan, logbook, save=save, hooks=hooks)
        found = _show(run, state, part.steps, logbook, thorough=run.answer is None)
        if run.answer is not None:
            _evaluate(run, state, part.steps, logbook)
        if jax.process_index() == 0:
            workdir.note_end(run.folder, part.steps, config)
        return found
    finally:
        batches.close()
        checkpoints.close()
        logbook.close()
        if run.held is not None:
            run.held.close()


def _show(run, state, step, logbook, *, thorough=False):
    """Sample, keep the picture, and measure what can be measured; the first host does all but the sampling."""
    training, model = run.training, _sampled(run, state, step)
    drawn = draw(model, compiled=run.compiled)
    if jax.process_index():
        return {}
    logbook.picture(step, "samples", picture(drawn, model.info, source=training.source))
    found = judge(training.source, drawn)
    if thorough and isinstance(training.source, Density) and not training.model.classes:
        found["surplus_nats"] = surplus(training.source, model)
    if found:
        logbook.scalars(step, {f"samples/{name}": value for name, value in found.items()})
    return found


def _prepare_evaluation(config, folder, training, compiled):
    """Return what measures a model every so many steps and at the end, or None; mistakes are said here."""
    asked = config.evaluation
    at_least(asked, "every", 0, under="evaluation.")
    if not asked.every and not asked.settings:
        return None
    request = make_request(Question(metrics=asked.metrics, features=asked.features, samples=asked.samples))
    model = Trained(config, training.model, None, 0, _named(training))
    models = under(model, asked.settings or ({},))
    for one in models:
        if post_hoc_width(one.config) is not None:
            raise ValueError(
                f"config.evaluation measures while training, and {one.config.sampling.average} is the width of a "
                "post-hoc average, known afterwards. Measure it then: `sweep --over average=...`."
            )
    return prepare_settings(models, folder, request, reference=asked.reference, compiled=compiled)


def _evaluate(run, state, step, logbook):
    """Measure the model at hand under each setting and note the values; every host does, and the first keeps them."""
    settings = run.config.evaluation.settings or ({},)
    averages = {setting.get("average", run.config.sampling.average) for setting in settings}
    held = {average: _averaged(run, state, average) for average in sorted(averages)}
    sets = run.answer(lambda model: model._replace(params=held[model.config.sampling.average], step=step))
    for setting, cards in zip(settings, sets, strict=True):
        where = "".join(f"{key}={value}/" for key, value in setting.items())
        logbook.scalars(step, {f"evaluation/{where}{name}": value for name, value in cards.values.items()})


def _snap(run, state, step, stds):
    """Keep the averages for post-hoc lengths."""
    averages = run.parallel.whole(run.parallel.get_state(state).averages)
    if jax.process_index() == 0:
        save_snapshot(run.folder / "profiles", step, averages, stds)


def _sampled(run, state, step):
    """Return the model that is sampled."""
    average = "params" if post_hoc_width(run.config) is not None else run.config.sampling.average  # no snapshots yet
    return Trained(run.config, run.training.model, _averaged(run, state, average), step, _named(run.training))


def _averaged(run, state, average):
    """Return the parameters, or an average of them, on one device; every host takes part."""
    state = run.parallel.get_state(state)
    params = run.parallel.whole(state.params if average == "params" else state.averages[average])
    return jax.tree.map(lambda leaf: jax.device_put(leaf.addressable_data(0), jax.local_devices()[0]), params)


def _named(training):
    return training.batches.info._replace(classes=training.source.info.classes)


def _describe(run, params):
    from clu import parameter_overview

    workdir.write_info(run.folder, _named(run.training))
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    (run.folder / "parameters.txt").write_text(overview + "\n", encoding="utf-8")
