"""Lost or hidden? Probes by layer, pruned neurons, revival by steps, and the grid of a verdict."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from workbench.figures import scores, style
from workbench.figures.scores import BLACK
from workbench.results.result import Result

PROBE, PRUNE = "forgetting.probe", "forgetting.prune"
REVIVE, VERDICT = "forgetting.revive", "forgetting.verdict"
# Okabe & Ito's blue and orange, pale enough for numbers in black.
READINGS = {"kept": "#9CCBE8", "lost": "#F4C58A", "unclear": "#DDDDDD", "not measured": "#FFFFFF"}
MEASURES = ("output", "probe", "revival", "conjugate", "loss")
SCALES = {"loss": "loss\n(nats/token)", "output": "output", "probe": "probe",
          "revival": "revival", "conjugate": "conjugate"}  # fmt: skip
CONTROLS = (
    ("never", "never knew", style.DASHES[1]),
    ("relabelled", "relabelled", style.DASHES[2]),
    ("random weights", "random weights", ":"),
)


@style.styled
def probe_layers(result: Result, ax: Axes | None = None) -> Figure:
    """Accuracy of the linear probes at every depth; a panel per member. Black: the base; dotted:
    random weights; grey band: the tuned model's stream with shuffled labels."""
    figure, axes, panels = scores.by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("accuracy").assign(x=lambda rows: rows["layer"].astype(float))
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        for arm, label, colour, dashes in (
            ("base", "base", BLACK, "-"),
            ("tuned", "tuned model", look.colour, "-"),
            ("random weights", "random weights", style.GREY, ":"),
            ("tuned, shuffled", "shuffled labels", style.GREY, "--"),
        ):
            line = own[own["arm"] == arm]
            here.plot(line["x"], line["value"], color=colour, ls=dashes, lw=1.2, label=label,
                      marker="o" if arm in ("base", "tuned") else "", ms=2.5)  # fmt: skip
            scores.band(here, line, colour)
        depths = sorted(own["x"].unique())
        step = max(1, len(depths) // 6)
        shown = depths[::step]
        here.set_xticks(shown, ["emb" if d < 0 else f"{d:.0f}" for d in shown])
        here.set_ylim(0, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    task = str(table["task"].iloc[0])
    style.first_column(axes, f"probe accuracy\n({style.text(task)})")
    for here in axes[-1]:
        here.set_xlabel("layer (resid_post)")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def prune_scores(result: Result, ax: Axes | None = None) -> Figure:
    """Score on the capability while the neurons that the fine-tuned task uses most go; a panel per
    member. Dotted: as many random neurons; black: the same neurons of the base; dashed: the
    fine-tuned task itself."""
    figure, axes, panels = scores.by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    smallest = table.loc[table["x"] > 0, "x"].min()
    for here, (member, look) in panels:
        own = table[table["member"] == member].sort_values("x")
        for arm, learned, label, colour, dashes in (
            ("base, same neurons", False, "base, same neurons", BLACK, "-"),
            ("ranked", False, "tuned, ranked neurons", look.colour, "-"),
            ("random", False, "tuned, random neurons", look.colour, ":"),
            ("ranked", True, "fine-tuned task, ranked", style.GREY, "--"),
        ):
            line = own[(own["arm"] == arm) & own["own"].eq(learned)]
            line = line.assign(x=line["x"].where(line["x"] > 0, smallest / 4))
            here.plot(line["x"], line["value"], color=colour, ls=dashes, lw=1.2, label=label)
            scores.band(here, line, colour)
        ticks = sorted(own.loc[own["x"] > 0, "x"].unique())
        ticks = ticks[:: 1 + len(ticks) // 4]
        here.set_xscale("log")
        here.xaxis.set_major_locator(FixedLocator([smallest / 4, *ticks]))
        here.xaxis.set_minor_locator(NullLocator())
        here.set_xticklabels(["0", *(f"{100 * t:g}" for t in ticks)])
        here.set_ylim(-0.03, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    task = str(table.loc[table["own"].eq(False), "task"].iloc[0])
    style.first_column(axes, f"score\n({style.text(task)})")
    for here in axes[-1]:
        here.set_xlabel("neurons pruned (%)")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def revival_curves(result: Result, ax: Axes | None = None) -> Figure:
    """Score against steps of training on the lost task, mean over runs (band: their range); a panel
    per member. Black: the base; broken lines: models that never knew, and exchanged answers."""
    figure, axes, panels = scores.by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("score")
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        for arm, label, dashes, colour in (
            ("base", "base", "-", BLACK),
            ("tuned", "tuned model", "-", look.colour),
            *((arm, label, dashes, style.GREY) for arm, label, dashes in CONTROLS),
        ):
            line = own[own["arm"] == arm]
            if line.empty:
                continue
            by_step = line.groupby("x")["value"].agg(["mean", "min", "max"])
            x = np.where(by_step.index > 0, by_step.index, 0.5)
            here.plot(x, by_step["mean"], color=colour, ls=dashes, lw=1.2, label=label,
                      marker="o" if arm in ("base", "tuned") else "", ms=2.5)  # fmt: skip
            here.fill_between(x, by_step["min"], by_step["max"], color=colour, alpha=0.15, lw=0)
        steps = sorted(own["x"].unique())
        here.set_xscale("log", base=2)
        here.xaxis.set_major_locator(FixedLocator([s if s > 0 else 0.5 for s in steps]))
        here.xaxis.set_minor_locator(NullLocator())
        here.set_xticklabels([f"{s:.0f}" for s in steps])
        here.set_ylim(-0.03, 1.03)
        here.set_title(look.label, loc="left", color=look.colour)
    style.first_column(axes, f"score\n({style.text(str(table['task'].iloc[0]))})")
    for here in axes[-1]:
        here.set_xlabel("training steps")
    style.blank(axes, len(result.members))
    style.legend(axes, outside=ax is None)
    return figure


@style.styled
def verdict_grid(result: Result, ax: Axes | None = None) -> Figure:
    """The evidence on one capability, a row per member, and the verdict it supports. Colours: how a
    cell is read; numbers: shares of the base's (loss: nats per token above it)."""
    looks = style.looks(result)
    figure, axes = style.panels(
        *(ax, 1, 1), width=style.WIDE, height=0.3 * len(looks) + 1.05, share=(False, False)
    )  # fmt: skip
    here = axes[0, 0]
    table = result.table
    last = len(MEASURES)
    for row, member in enumerate(looks):
        own = table[table["member"] == member].set_index("arm")
        for column, arm in enumerate(MEASURES):
            cell = own.loc[arm]
            here.add_patch(_cell(column, row, READINGS[str(cell["reading"])]))
            told = "–" if pd.isna(cell["value"]) else (
                f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"
            )  # fmt: skip
            here.text(column, row, told, ha="center", va="center", fontsize=5.5)
        here.text(last, row, str(own.loc["verdict", "reading"]).lower(), ha="center", va="center",
                  fontsize=7, weight="bold")  # fmt: skip
    here.set_xlim(-0.5, last + 0.5)
    here.set_ylim(len(looks) - 0.5, -0.5)
    here.set_xticks(range(last + 1), [*(SCALES[m] for m in MEASURES), "verdict"])
    here.xaxis.tick_top()
    here.set_yticks(range(len(looks)), [style.text(look.label) for look in looks.values()])
    here.tick_params(length=0)
    here.spines[:].set_visible(False)
    for name, colour in READINGS.items():
        here.plot([], [], ls="", marker="s", ms=7, mfc=colour, mec=style.GREY, mew=0.5, label=name)
    here.set_ylabel("member")
    here.set_xlabel(f"{style.text(str(table['task'].iloc[0]))}: share of the base's")
    style.legend(axes, outside=ax is None)
    return figure


def _cell(column: int, row: int, colour: str):

    return Rectangle((column - 0.48, row - 0.44), 0.96, 0.88, fc=colour, ec=style.GREY, lw=0.4)
