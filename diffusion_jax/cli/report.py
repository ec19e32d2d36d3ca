"""Put what some runs measured into one table and one page.

    python -m diffusion_jax report --workdirs runs/schedules/* --out runs/schedules
    python -m diffusion_jax report --workdirs runs/a runs/b runs/c --cumulative

--workdirs DIR ...     the folders of the runs
--out DIR              where the report goes; by default the folder above the first run
--baseline NAME        the arm that others are held against, by its name in the table; by default the first
--cumulative           every arm adds something to the one before, and is held against that
--force                put values that were not measured alike into one table all the same

An arm is what differs among the runs, and among the ways in which they were sampled; seeds of one arm are averaged.
Under the table stands which seeds it is of and what it does not show: runs without cards, and folders that are no runs.
Leaves report.md, report.html, which holds tables and pictures and needs no other file, rows.csv and rows.jsonl.
"""

from collections.abc import Callable, Sequence

from diffusion_jax.ablation import report
from diffusion_jax.cli import arguments


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read what the runs measured; return the job."""
    asked = arguments.read_report(argv)
    made = report.prepare(**asked)

    def job():
        page = made.write()
        print(made.table, *made.words, sep="\n")
        print(f"wrote {page}, report.md, rows.csv and rows.jsonl")

    return job
