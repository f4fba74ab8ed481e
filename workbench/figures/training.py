"""How did a training run go? The lines of its log.jsonl, over the steps.

Gradient norms by component (before clipping, root mean square over the steps since the line
before), the entropy of the predictions and their KL from the start: what `lab.training_log` writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style

LOG = "log.jsonl"
WATCHED = {
    "loss": "loss (nats/token)",
    "entropy": "entropy (nats)",
    "kl": "KL from the start (nats)",
}
LINES = ("-", "--", ":", "-.")


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log. Raises WorkbenchError where there is none, or a line is no JSON
    with a step."""
    path = Path(folder)
    path = path / LOG if path.is_dir() else path
    if not path.is_file():
        raise WorkbenchError(
            f"Expected a folder that `lab train` wrote, with {LOG} in it; found none at {path}."
        )
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            told = json.loads(line)
            found.append(told | {"step": float(told["step"])})
        except (ValueError, TypeError, KeyError) as error:
            raise WorkbenchError(
                f"Expected JSON with a step in line {number} of {path}, found {line[:60]!r}; "
                "remove the line, or train the run again."
            ) from error
    if not found:
        raise WorkbenchError(f"Expected lines in {path}, found none; the run has not begun.")
    return found


@style.styled
def training_run(folder: str | Path, ax: Axes | None = None) -> Figure:
    """Loss, entropy, KL from the start and gradient norms by component over a run's steps.

    folder: what `lab.train` wrote, or its log.jsonl. A quantity that the run did not write has no
    panel; the norms of a run from before they were written are left out in the same way. Raises
    WorkbenchError for a log that cannot be read.
    """
    lines = read(folder)
    steps = np.array([line["step"] for line in lines])
    curves = {name: _numbers(lines, name) for name in WATCHED}
    shown = [name for name, values in curves.items() if np.isfinite(values).any()]
    norms = [line.get("gradient_norm") or {} for line in lines]
    parts = list(dict.fromkeys(name for one in norms for name in one))
    count = len(shown) + bool(parts)
    if not count:
        raise WorkbenchError(f"Expected a loss in the log of {folder}, found steps alone.")
    rows, columns = style.grid_shape(count, 2)
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.WIDE if columns > 1 else style.COLUMN,
        height=2.1 * rows + 0.4,
    )
    for here, name in zip(axes.flat, shown, strict=False):
        here.plot(steps, curves[name], color=style.BLACK, marker="o", ms=2, lw=1)
        start = curves[name][np.isfinite(curves[name])][0]
        here.axhline(start, color=style.GREY, ls=style.DASHES[0], lw=0.8, label="first in the log")
        here.set(xlabel="step", ylabel=WATCHED[name])
    if parts:
        _gradients(axes.flat[len(shown)], steps, norms, parts)
    style.blank(axes, count)
    style.legend(axes, outside=ax is None)
    return figure


def _gradients(
    here: Axes, steps: np.ndarray, norms: list[dict[str, float]], parts: list[str]
) -> None:
    """A colour for each component, a dash for each factor of its LoRA."""
    names = [re.sub(r"^(self_attn|mlp|attn)\.|_proj|lora_", "", part) for part in parts]
    colours = list(dict.fromkeys(name.partition(".")[0] for name in names))
    factors = list(dict.fromkeys(name.partition(".")[2] for name in names))
    for part, name in zip(parts, names, strict=True):
        component, _, factor = name.partition(".")
        place, dash = colours.index(component), factors.index(factor)
        values = np.array([one.get(part, np.nan) for one in norms], dtype=float)
        here.plot(steps, values, color=style.CYCLE[place % len(style.CYCLE)], lw=1,
                  ls=LINES[(dash + place // len(style.CYCLE)) % len(LINES)],
                  label=f"{component} {factor}".strip())  # fmt: skip
    here.set_yscale("log")
    here.set(xlabel="step", ylabel=f"gradient norm {marks.LOG}")


def _numbers(lines: list[dict[str, Any]], name: str) -> np.ndarray:
    values = [line.get(name) for line in lines]
    return np.array([np.nan if value is None else value for value in values], dtype=float)
