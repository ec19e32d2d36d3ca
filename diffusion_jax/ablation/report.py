"""Some runs in one page: tables, pictures, and every row, in files that open from disk."""

import base64
import html
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from diffusion_jax import plots
from diffusion_jax.ablation import pictures, tables
from diffusion_jax.ablation.rows import Row, arms_of, metrics_of, name_of, read_rows
from diffusion_jax.files import check_folder, replacing
from diffusion_jax.workdir import under_way

MOST_PICTURES = 16  # of samples in a page


def prepare(
    workdirs: Sequence[Path],
    out: Path,
    *,
    baseline: str = "",
    cumulative: bool = False,
    force: bool = False,
    notes: Sequence[str] = (),
) -> "Report":
    """Read what some runs measured; values that were not measured alike are refused unless `force`d.

    `notes` are of what the tables do not show; that a run has no cards or has not ended is noted besides.
    """
    if cumulative and baseline:
        raise ValueError("report: --cumulative holds every arm against the one before; leave --baseline out.")
    check_folder(out, "--out")
    rows = read_rows(workdirs)
    measured = {row.workdir for row in rows}
    notes = [
        *notes,
        *(f"{workdir} has no cards, and is not in the tables" for workdir in workdirs if workdir not in measured),
        *(f"{workdir} has not come to its end" for workdir in workdirs if workdir in measured and under_way(workdir)),
    ]
    arms = arms_of(rows)
    if cumulative and len(arms) > len(tables.LETTERS):
        raise ValueError(f"report: {len(arms)} arms are too many for a cumulative table, which letters them.")
    named = {name_of(arm): arm for arm in arms}
    if baseline and baseline not in named:
        raise ValueError(f"report: no arm is called '{baseline}'. There are: {'; '.join(named)}.")
    base = named.get(baseline, arms[0])
    table = tables.cumulative(rows, force=force) if cumulative else tables.markdown(rows, base=base, force=force)
    words = "each row's to the row above" if cumulative else f"to `{name_of(base)}`"
    return Report(rows, table, out, [_words(rows, words), *notes])


class Report:
    """Rows, their table, and in words how they are to be read, with what is not there."""

    def __init__(self, rows: Sequence[Row], table: str, out: Path, words: Sequence[str]):
        self.rows, self.table, self.out, self.words = rows, table, out, words

    def write(self) -> Path:
        """Write report.md, rows.csv, rows.jsonl and report.html, and return the last."""
        self.out.mkdir(parents=True, exist_ok=True)
        question = self._question()
        pages = {
            "report.md": "\n\n".join([part for part in (question, self.table, *self.words) if part]) + "\n",
            "rows.csv": tables.as_csv(self.rows),
            "rows.jsonl": tables.as_json_lines(self.rows),
            "report.html": self._page(question),
        }
        for name, text in pages.items():
            with replacing(self.out / name) as file:
                file.write(text.encode())
        return self.out / "report.html"

    def _question(self):
        note = self.out / "question.md"
        return note.read_text(encoding="utf-8").strip() if note.exists() else ""

    def _page(self, question):
        sections = [_paragraphs(question), _table(self.table)]
        sections += [f"<p class=note>{_inline(text)}</p>" for text in self.words]
        for metric in metrics_of(self.rows):
            drawn = [draw(self.rows, metric) for draw in (pictures.heat_map, pictures.against_evaluations)]
            sections += [_figure(figure, metric) for figure in drawn if figure is not None]
        folders = self._folders()
        losses = pictures.loss_by_noise(folders)
        sections += [] if losses is None else [_figure(losses, "loss against log-SNR")]
        grids = [(name, pictures.last_picture(folder)) for name, folder in folders.items()]
        shown = [_image(Image.fromarray(grid), name) for name, grid in grids if grid is not None]
        sections += [f"<section class=grids>{''.join(shown[:MOST_PICTURES])}</section>"]
        sections += ["<details><summary>Every row</summary>", _table(self._every_row()), "</details>"]
        return PAGE.replace("BODY", "\n".join(sections))

    def _folders(self):
        """Return a folder for each arm of training, that of its first seed, by the arm's name if it has only one."""
        arms: dict[Path, set[str]] = {}
        least = min(row.seed for row in self.rows)
        for row in self.rows:
            if row.seed == least:
                arms.setdefault(row.workdir, set()).add(name_of(row.arm))
        named = {folder.name if len(names) > 1 else min(names): folder for folder, names in arms.items()}
        return dict(itertools.islice(named.items(), MOST_PICTURES))

    def _every_row(self):
        head = "| run | seed | arm | metric | value |"
        lines = [
            f"| {row.workdir.name} | {row.seed} | {name_of(row.arm)} | {row.card.metric} | {row.card} |"
            for row in self.rows
        ]
        return "\n".join([head, "| --- | --- | --- | --- | ---: |", *lines])


def _words(rows, against):
    """Say what means and differences are of, and which seeds an arm has where not all have the same."""
    of = [(name_of(arm), sorted({row.seed for row in rows if row.arm == arm})) for arm in arms_of(rows)]
    seeds = sorted({row.seed for row in rows})
    each = "Means over the seeds with Student's intervals of 95 %" if len(seeds) > 1 else "One seed"
    fewer = [f"`{name}` has {', '.join(map(str, own))}" for name, own in of if own != seeds]
    return (
        f"{each}; seeds: {', '.join(map(str, seeds))}"
        + "".join(f"; {text}" for text in fewer)
        + f". Differences are {against}, from the seeds that both have; those that chance may have made are in "
        "brackets."
    )


def _table(markdown: str) -> str:
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = [
        "".join(f"<td{' class=chance' if cell.startswith('(') else ''}>{html.escape(cell)}</td>" for cell in row)
        for row in body
    ]
    return f"<table><tr>{cells}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _paragraphs(text: str) -> str:
    """Return paragraphs, of which the first is what was asked."""
    first, *rest = [_inline(part) for part in text.split("\n\n") if part] or ["Report"]
    return f"<h1>{first}</h1>" + "".join(f"<p>{part}</p>" for part in rest)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _figure(figure: Figure, name: str) -> str:
    return _image(Image.fromarray(plots.pixels(figure)), name)


def _image(image: Any, name: str) -> str:
    content = io.BytesIO()
    image.save(content, format="png", optimize=True)
    data = base64.b64encode(content.getvalue()).decode()
    name = html.escape(name)
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #0c0f1d; background: #ece9e1; max-width: 1100px; margin: 2em auto;
       padding: 0 1em }
h1 { font-size: 1.5em }
table { border-collapse: collapse; margin: 1.5em 0; background: #f7f5f0; max-width: 100%; overflow-x: auto }
th, td { padding: 0.3em 0.8em; text-align: right; border-bottom: 1px solid #d6d1c4; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
td.chance { color: #9b988f }
figure { margin: 1.5em 0; display: inline-block } img { max-width: 100%; display: block }
figcaption, .note { color: #62647a; font-size: 13px }
.grids { display: flex; flex-wrap: wrap; gap: 1em } .grids figure { flex: 1 1 300px; margin: 0 }
</style></head><body>
BODY
</body></html>
"""
