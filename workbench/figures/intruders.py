"""How many top singular vectors of the tuned weights resemble none of the base, and where?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.results.intruder_counts import NULLS, TUNED, decided_only, intruder_counts, settings
from workbench.results.result import Result

KEY = "spectral.intruders"


@style.styled
def intruders_by_eps(
    result: Result, ax: Axes | None = None, *, k: int | None = None, percent: bool = True
) -> Figure:
    """Intruders against eps, a line per member, its nulls broken and thin; the run's eps marked.
    A Result of method "decide" has a point per member, and a bar per null.

    percent: of the top-k vectors of all matrices that changed; else their number.
    """
    eps, k = settings(result, None, k)
    only = decided_only(result)
    counts = intruder_counts(result, eps if only else list(np.linspace(0, 1, 201)), k)
    counts["y"] = 100 * counts["fraction"] if percent else counts["count"]
    figure, axes = style.panels(ax)
    here: Axes = axes[0, 0]
    for name, look in style.looks(result).items():
        ours = counts[(counts["member"] == name) & (counts["arm"] == TUNED)]
        here.plot(
            *(ours["eps"], ours["y"]),
            color=look.colour,
            marker=look.marker,
            markevery=25,
            label=look.label,
        )
    for name, look in style.looks(result).items():
        ours = counts[counts["member"] == name]
        for (arm, label), dashes in zip(NULLS.items(), style.DASHES, strict=True):
            null = ours[ours["arm"] == arm]
            if len(null):
                # Each null is its own member's: the same colour, thin and broken.
                here.plot(
                    *(null["eps"], null["y"]),
                    color=look.colour,
                    ls=dashes,
                    marker="_" if only else "",
                    lw=0.7,
                    alpha=0.8,
                    label=label,
                    zorder=1,
                )
    here.axvline(eps, color=style.GREY, lw=0.6, zorder=0)
    side = result.provenance.parameters.get("side", "left")
    what = f"top-{k} {side} vectors"
    here.set(
        xlabel="threshold ε on the largest cosine (unitless)",
        ylabel=f"intruders (% of {what})" if percent else f"intruders (count, {what})",
        xlim=(0, 1),
        ylim=(0, None),
    )
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def intruders_by_place(
    result: Result, ax: Axes | None = None, *, eps: float | None = None, k: int | None = None
) -> Figure:
    """Intruders per layer (upwards) and component: a heat map per member, and one of the null.

    The control panel is the mean over members of the first of NULLS that the table has.
    """
    eps, k = settings(result, eps, k)
    counts = intruder_counts(result, eps, k, by=("member", "layer", "component"))
    counts["layer"] = counts["layer"].fillna(-1)  # matrices outside the layers: the lowest row
    layers = sorted(counts["layer"].unique())
    components = list(dict.fromkeys(counts["component"]))
    maps = {
        look.label: _grid(
            counts[(counts["member"] == name) & (counts["arm"] == TUNED)], layers, components
        )
        for name, look in style.looks(result).items()
    }
    for arm, label in NULLS.items():
        if (counts["arm"] == arm).any():
            maps[f"null: {label}"] = _grid(counts[counts["arm"] == arm], layers, components)
            break
    rows, columns = style.grid_shape(len(maps))
    tall = min(3.0, max(1.6 if rows == 1 else 1.1, 0.11 * len(layers) + 0.3))
    figure, axes = style.panels(
        *(ax, rows, columns),
        width=style.WIDE if columns > 1 else style.COLUMN,
        height=rows * tall + 1.0,
        share=(True, True),
    )
    for one in axes.flat[len(maps) :]:
        one.set_axis_off()
    image = None
    for one, (label, values) in zip(axes.flat, maps.items(), strict=False):
        one.set_facecolor(style.PALE)
        image = one.imshow(
            values, origin="lower", aspect="auto", vmin=0, vmax=k, interpolation="nearest"
        )
        one.set_title(label)
        one.set_xticks(range(len(components)), style.short_components(components), rotation=90)
        every = max(1, len(layers) // 6)
        names = ["none" if n < 0 else f"{int(n)}" for n in layers]
        one.set_yticks(range(0, len(layers), every), names[::every])
    for i, one in enumerate(axes.flat[: len(maps)]):
        lowest = i // columns == rows - 1
        one.tick_params(labelbottom=lowest, length=0)
        if lowest:
            one.set_xlabel("component")
    for one in axes[:, 0]:
        one.set_ylabel("layer (index)")
    assert image is not None
    figure.colorbar(
        image, ax=list(axes.flat), label=f"intruders (count of {k})", aspect=30, pad=0.02
    )
    return figure


def _grid(counts: pd.DataFrame, layers: list, components: list[str]) -> np.ndarray:
    """(layers, components) mean count over members, NaN where there is no such matrix."""
    mean = counts.pivot_table("count", "layer", "component", aggfunc="mean")
    return mean.reindex(index=layers, columns=components).to_numpy(dtype=float)
