"""The table of docs/scaling.md: three networks planned for three slices of TPUs, none of which is here.

    python -m experiments.scaling_table --out runs/plans

Each plan is a command of its own, which the table's rows show; what is in the folder already is not compiled again.
Compiling takes half a minute to ten minutes a row on two cores.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from diffusion_jax.launch.plan import four_digits

SLICES = {"v5e:4x4": 16, "v5e:16x16": 256, "v5p:4x4x4": 64}
RECIPES = {  # what each needs on some slice to fit
    "imagenet256_dit": {"v5e:4x4": ["mesh.fsdp=16"], "v5e:16x16": ["mesh.fsdp=16"], "v5p:4x4x4": []},
    "cifar10_edm": {"v5e:4x4": [], "v5e:16x16": [], "v5p:4x4x4": []},
    "imagenet64_adm": {"v5e:4x4": ["parts=8"], "v5e:16x16": [], "v5p:4x4x4": []},
}


def main() -> None:
    """Make what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/plans"))
    folder = parser.parse_args().out
    rows = []
    for config, recipes in RECIPES.items():
        for topology, changes in recipes.items():
            out = folder / f"{config}-{topology.replace(':', '-')}.json"
            words = ["--config", f"configs/{config}.py", "--topology", topology, "--work", "training"]
            words += [f"--config.training.{change}" for change in changes]
            if not out.exists():
                command = [sys.executable, "-m", "diffusion_jax", "plan", *words, "--nolargest", "--out", str(out)]
                print(shlex.join(command), file=sys.stderr, flush=True)
                if subprocess.run(command).returncode == 2:
                    raise SystemExit(2)
            rows.append(row(config, topology, changes, *json.loads(out.read_text())))
    print("\n".join([HEAD, *rows]))


HEAD = """\
| config | slice | chips | `training.` | HBM a chip | TFLOP | GB | GB received | bound by | images/s | compiled |
| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |"""


def row(config: str, topology: str, changes: list[str], plan: dict) -> str:
    """Return a plan as a row."""
    needed = f"{plan['needed_bytes'] / 2**30:.2f} of {plan['there_bytes'] / 2**30:.0f} GiB"
    cells = [config, topology, SLICES[topology], ", ".join(changes), needed]
    if plan["fits"]:
        times = plan["seconds_at_least"]
        received = sum(one["bytes"] for one in plan["collectives"])
        cells += [f"{plan['flops'] / 1e12:.3g}", f"{plan['memory_bytes'] / 1e9:.3g}", f"{received / 1e9:.3g}"]
        cells += [max(times, key=times.__getitem__), four_digits(plan["per_second_at_most"])]
    else:
        cells += ["", "", "", "does not fit", ""]
    return "| " + " | ".join(map(str, [*cells, f"{plan['compile_seconds']:.0f} s"])) + " |"


if __name__ == "__main__":
    main()
