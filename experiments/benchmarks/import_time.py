"""How much longer `import diffusion_jax` takes than `import jax`, alone and with every public name loaded.

Run it with `python experiments/benchmarks/import_time.py`.
"""

import statistics
import subprocess
import sys
import time

REPEATS = 7
STARTS = {
    "jax": "import jax",
    "diffusion_jax": "import diffusion_jax",
    "jax, then diffusion_jax and all its names": "import jax; from diffusion_jax import *",
}


def main() -> None:
    """Time each start in fresh interpreters, in turn, and print the medians."""
    seconds = {name: [] for name in STARTS}
    for _ in range(REPEATS):
        for name, code in STARTS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - begin)
    for name, measured in seconds.items():
        print(f"{statistics.median(measured):6.2f} s  {name}")


if __name__ == "__main__":
    main()
