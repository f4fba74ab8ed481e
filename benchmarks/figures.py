"""What figures/ keeps of a run, and everything there drawn from it again, without a model.

python -m benchmarks.figures                            # draw: figures, reports, panels, findings
python -m benchmarks.figures keep out/family family     # keep a finished run as figures/family

In git are the results and the page of published findings; git ignores what is drawn beside them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from workbench.figures import Spec
from workbench.files.writing import OWN, replacing, writing
from workbench.findings import by_base, page
from workbench.loaders.devices import cores
from workbench.results.run_folder import ABOUT
from workbench.study.runs import redraw

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
LARGE = 2**22  # bytes: positions of grafts, which can be cut again
# Bytes of tensors above which three digits of each number are kept, as many as a figure shows.
FINE = 2**15


def draw() -> None:
    """Every kept run, the panels of every .yaml file, and the findings."""
    runs = sorted(path.parent for path in FIGURES.glob("*/results"))
    for run in runs:
        shutil.rmtree(run / "figures", ignore_errors=True)  # what is drawn no more must not stay
        print(redraw(run, formats=("png",), workers=cores()))
    for spec in sorted(FIGURES.glob("*.yaml")):
        print(*Spec.load(spec).save(spec.with_suffix("")), sep="\n")
    with writing(FIGURES / "findings.md", OWN) as fresh:
        fresh.write_text(page(by_base(runs)), encoding="utf-8")
    print(FIGURES / "findings.md")


def keep(run: Path, target: Path) -> None:
    """Every Result of a run with its provenance, in place of what `target` kept before."""
    with replacing(target, OWN) as fresh:
        shutil.copy(run / ABOUT, fresh / ABOUT)
        shutil.copytree(run / "results", fresh / "results", ignore=large)
        for file in fresh.glob("results/*/tensors.safetensors"):
            if file.stat().st_size > FINE:
                save_file({name: rounded(array) for name, array in load_file(file).items()}, file)


def large(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).stat().st_size > LARGE]


def rounded(array: np.ndarray) -> np.ndarray:
    """float32 as float16; whole numbers as they are."""
    return array.astype(np.float16) if array.dtype == np.float32 else array


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        keep(Path(sys.argv[2]), FIGURES / sys.argv[3])
    else:
        draw()
