"""What a run of a batch costs beyond its kernel: starting, watching, account, page and MLflow.

python benchmarks/grid.py --runs 12 --workers 2
"""

import argparse
import statistics
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from racing_core.config import home
from racing_core.lab import grid, plan
from racing_core.lab.notebook import execute


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--runs", type=int, default=12)
    asked.add_argument("--workers", type=int, default=2)
    asked = asked.parse_args()
    with TemporaryDirectory() as folder:
        file, place = Path(folder) / "small.ipynb", home(Path(folder) / "home", env={})
        cell = new_code_cell("seed = 0", metadata=dict(tags=["parameters"]))
        nbformat.write(new_notebook(cells=[cell, new_code_cell("print(seed)")]), file)
        alone = []
        for k in range(4):  # the first one imports
            began = time.perf_counter()
            execute(file, Path(folder) / f"alone-{k}", dict(seed=k))
            alone.append(time.perf_counter() - began)
        kernel, began = statistics.median(alone[1:]), time.perf_counter()
        x = grid.begin(place, plan.ask(file, {}, {}, asked.runs))
        with closing(grid.run(x, grid.Local(asked.workers))) as outcomes:
            done = sum(o.state == "finished" for o in outcomes)
        took = time.perf_counter() - began
    share = took * asked.workers / asked.runs
    print(f"kernel alone: {kernel:.2f} s")
    print(f"{done} of {asked.runs} runs on {asked.workers} workers: {took:.1f} s")
    print(f"beyond the kernel: {share - kernel:.2f} s a run (of one worker's time)")


if __name__ == "__main__":
    main()
