"""Draw everything under figures/ again from the results that are kept there, without a model.

python -m benchmarks.redraw [figures]

Figures and reports of every kept run, the panels of every .yaml file, the page of published
findings, and their summary in README.md.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from workbench.figures import Spec
from workbench.findings import by_base, page, summary
from workbench.results import writing
from workbench.runs import redraw

README = Path(__file__).parents[1] / "README.md"
MARKS = ("<!-- findings: python -m benchmarks.redraw -->", "<!-- end of findings -->")


def everything(folder: Path) -> None:
    runs = sorted(path.parent for path in folder.glob("*/results"))
    for run in runs:
        for old in run.glob("*.png"):  # a figure that is drawn no more must not stay
            old.unlink()
        print(redraw(run, pictures=run, formats=("png",)))
    for spec in sorted(folder.glob("*.yaml")):
        print(*Spec.load(spec).save(spec.with_suffix("")), sep="\n")
    tables = by_base(runs)
    write(folder / "findings.md", page(tables))
    between = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.S)
    told = f"{MARKS[0]}\n\n{summary(tables)}\n\n{MARKS[1]}"
    write(README, between.sub(lambda _: told, README.read_text(encoding="utf-8")))


def write(path: Path, text: str) -> None:
    with writing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
    print(path)


if __name__ == "__main__":
    everything(Path(sys.argv[1] if len(sys.argv) > 1 else "figures"))
