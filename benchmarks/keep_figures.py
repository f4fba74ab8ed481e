"""Copy what a finished run drew, and the numbers behind it, to a folder that is kept.

python -m benchmarks.keep_figures out/family figures/family
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from workbench.results import replacing
from workbench.runs import ABOUT

LARGE = 2**22  # bytes


def keep(run: Path, target: Path) -> None:
    """PNG figures, report.html, and every Result with its provenance; PDFs can be drawn again."""
    with replacing(target) as fresh:
        for figure in sorted((run / "figures").glob("*.png")):
            shutil.copy(figure, fresh / figure.name)
        for name in ("report.html", ABOUT):
            shutil.copy(run / name, fresh / name)
        shutil.copytree(run / "results", fresh / "results", ignore=large)


def large(folder: str, names: list[str]) -> list[str]:
    """Positions of grafts, which take many times the room of all figures and can be cut again."""
    return [name for name in names if (Path(folder) / name).stat().st_size > LARGE]


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
