"""`importing.py` by the name of what it measures, which no module could have."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("importing.py")), run_name="__main__")
