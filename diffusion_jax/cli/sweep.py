"""Carry out an ablation, or measure one checkpoint under many settings of its sampling.

    python -m diffusion_jax sweep experiments/ablations/schedules.py --backend local --parallel 2

runs every arm of the file that is not done yet and writes a report: see `report --help`.

--out DIR              where the runs go, a folder each, and the report; by default runs/NAME
--backend NAME         local, by default, tpu, kubernetes or slurm, with its options as in `launch --help`
--parallel N           so many runs at a time, on local and slurm
--dry_run              print what would be run, as a script

Where runs go on without this process (kubernetes, slurm, tpu without --watch) they are only started; `status NAME`
says how they are, and when they are done the same command writes the report.

    python -m diffusion_jax sweep --workdir runs/quickstart --over steps=5,10,20 --over guidance.scale=1,2,3 \\
        --metrics fid,agreement --samples 1000 --features pixels
    python -m diffusion_jax sweep --workdir runs/toy --over solver=euler,heun --over steps=4,8,16 \\
        --metrics sliced_distance --samples 2000

--over KEY=A,B,...     values of an entry of `sampling`, by its dotted key; several --over are combined, each with each
--out DIR              where the table and the picture go; by default DIR/sweeps
and --workdir, --metrics, --samples, --reference, --features, --step and --config.KEY as in `evaluate`.

What differs only in values, such as the scale of guidance, is compiled once. The table has a row a setting; the picture
shows every metric against the first key, a line for every combination of the others.
"""

import ast
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax import plots, sweep
from diffusion_jax.ablation import carry_out, question, report
from diffusion_jax.assess import Question
from diffusion_jax.cli import arguments
from diffusion_jax.evaluation.card import table, write_cards
from diffusion_jax.files import check_folder, replacing
from diffusion_jax.launch import record
from diffusion_jax.launch.action import script
from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.backends import make_backend
from diffusion_jax.launch.job import command, label, shown
from diffusion_jax.launch.start import keep_off_devices, refuse, refuse_share, start
from diffusion_jax.workdir import finished, plain


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Check the request; return the job."""
    if argv and not argv[0].startswith("-"):
        return _prepare_ablation(**arguments.read_ablation(argv))
    argv, over = _take_over(list(argv))
    given, out = arguments.read_evaluation(argv)
    asked = Question(**given)
    job, out = sweep.prepare(asked, over), out or Path(str(asked.workdir)) / "sweeps"
    check_folder(out, "--out")

    def answer():
        _tell(job(), over, out)

    return answer


def _prepare_ablation(source, out, backend, again, dry_run):
    """Check every arm of an ablation; return the job that runs them, or starts them, and reports."""
    keep_off_devices()
    ablation = question.load_ablation(source)
    runs = question.runs_of(ablation, out)
    for run in runs:
        _check_spelling(run)
    check_folder(out, "--out")
    spec = {"restarts": 0, **backend} if backend["name"] == "local" else backend  # an arm that fails is reported
    made = make_backend(spec)
    waiting, twins = carry_out.waiting(runs), question.twins(runs)
    launch = Launch(label(out.name) or "ablation", tuple(run.job for run in waiting))
    if waiting:
        refuse_share(made, *[run.config for run in waiting])
        refuse(made, record.Record(launch, spec), again=again, dry_run=dry_run)
    if dry_run:
        return lambda: print(script(made.start(launch) if waiting else ()), end="")

    def job():
        print(f"{len(runs)} runs, of which {len(waiting)} are to be done")
        for twin in twins:
            print(f"note: {twin}")
        carry_out.note_question(out, ablation.question, source, twins)
        if made.run is None and waiting:
            start(record.Record(launch, spec), made)
            print(
                f"{len(waiting)} runs were started; see `status {launch.name}`. When they are done: the same command."
            )
            return
        outcome = carry_out.carry_out(runs, partial(_run, made, launch.name))
        for ended in outcome.failed:
            print(f"\n{ended.job.name} failed with exit code {ended.code}; it said last:\n{ended.said}")
        _report(runs, out)
        if outcome.failed:
            raise SystemExit(
                f"error: {len(outcome.failed)} of {outcome.total} runs failed; the same command tries again."
            )

    return job


def _check_spelling(run):
    """Refuse an arm whose command line would be read as another config, or not at all."""
    read = plain(arguments.read(command(run.job)[4:]).config)
    if read != plain(run.config):
        raise ValueError(f"arm '{run.name}' has values that its command line, {shown(command(run.job))}, cannot say.")


def _report(runs, out):
    """Write the report of the runs that are done, which names the others."""
    done = [run.job.workdir for run in runs if finished(run.job.workdir, run.config)]
    notes = [f"{run.name} was not carried out to its end" for run in runs if run.job.workdir not in done]
    if done:
        page = report.prepare(done, out, notes=notes)
        print(page.table, *page.words, f"wrote {page.write()}", sep="\n")


def _run(backend, name, jobs):
    """Run jobs on a backend that stays with them; the bar of the runs is what is shown."""
    return backend.run(Launch(name, tuple(jobs)), lambda text: None)


def _tell(sets, over, out):
    settings = [dict(zip(over, values, strict=True)) for values in sweep.combinations(over)]
    names = [", ".join(f"{key} {value}" for key, value in setting.items()) for setting in settings]
    text = table(sets, names=names)
    out.mkdir(parents=True, exist_ok=True)
    stem = "-".join(over).replace(".", "_")
    with replacing(out / f"{stem}.md") as file:
        file.write(f"{text}\n".encode())
    write_cards(out / f"{stem}.json", [card for cards in sets for card in cards])
    pictures = [_picture(settings, sets, list(over), card.metric) for card in sets[0]]
    with replacing(out / f"{stem}.png") as file:
        Image.fromarray(np.concatenate(pictures)).save(file, format="png")
    print(text)
    print(f"wrote {out}/{stem}.md, .json and .png")


def _picture(settings, sets, keys, metric):
    """Draw a metric against the first key, a line for every combination of the others."""
    first, *others = keys
    lines: dict[str, list[tuple[Any, Any]]] = {}
    for setting, cards in zip(settings, sets, strict=True):
        label = ", ".join(f"{key} {setting[key]}" for key in others)
        lines.setdefault(label, []).append((setting[first], cards[metric]))
    return plots.pixels(plots.lines(lines, first, metric))


def _take_over(argv):
    """Split every --over off the command line."""
    rest, over = [], {}
    while argv:
        argument = argv.pop(0)
        name, _, value = argument.partition("=")
        if name not in ("--over", "-over"):
            rest.append(argument)
            continue
        spec = value or (argv.pop(0) if argv else "")
        key, _, values = spec.partition("=")
        if not key or not values:
            raise ValueError(f"--over {spec!r} names no values; give them as in --over steps=5,10,20.")
        over[key] = tuple(_value(part) for part in values.split(","))
    if not over:
        raise ValueError("what should vary? Give --over, as in --over steps=5,10,20.")
    return rest, over


def _value(text):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
