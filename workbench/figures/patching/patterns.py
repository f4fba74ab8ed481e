"""Where do the heads look, and which look elsewhere than the base's?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import marks, style
from workbench.figures.drawing import Drawing, has
from workbench.figures.heat_maps import Map, heat_maps
from workbench.figures.patching.layer_maps import by_head
from workbench.figures.tensors import by_member
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.patterns"
HEADING = "Where heads look"
KEYS = 60  # tokens of a prompt's end that fit two columns


@style.styled
def pattern_differences(result: Result, ax: Axes | None = None) -> Figure:
    """Distance of every head's last-token pattern from the base's, layers upwards, a map per model
    on one colour scale."""
    table = result.metric("tvd")
    table = table[table["position"] == "last token"]
    high = max(float(table["value"].max()), 1e-9)
    looks = style.looks(result)
    grids = {
        member: Map(looks[member].label, by_head(own), looks[member].colour)
        for member, own in table.groupby("member", sort=False)
    }
    label = "total variation distance;\n0: base against itself"
    return heat_maps(
        ax, list(grids.values()), high=high, legend=label, xlabel="head",
        counts=(table["n"], "prompts"),
    )  # fmt: skip


@style.styled
def focus(result: Result, ax: Axes | None = None) -> Figure:
    """Change of every head's attention entropy over all tokens, layers upwards, a map per model on
    one colour scale; blue: more focused than in the base."""
    table = result.metric("entropy")
    table = table[(table["position"] == "all tokens") & (table["side"] == "tuned - base")]
    looks = style.looks(result)
    maps = [
        Map(looks[member].label, by_head(own), looks[member].colour)
        for member, own in table.groupby("member", sort=False)
    ]
    label = "change of entropy (nats);\n0: base against itself"
    return heat_maps(ax, maps, legend=label, xlabel="head", counts=(table["n"], "prompts"))


@style.styled
def pattern_example(
    result: Result, ax: Axes | None = None, *, example: int | None = None
) -> Figure:
    """What one prompt's last token attends to, base and tuned, in the head that changed most, a
    panel per model (the first four). example: None for the one in which models change most."""
    table = result.metric("example_tvd")
    table = table[table["member"].isin(result.members[:4])]
    looks = style.looks(result)
    prompts = list(dict.fromkeys(table["prompt"]))
    last = table[table["x"] == table.groupby("prompt")["x"].transform("max")]
    if example is None:
        example = prompts.index(str(last.groupby("prompt")["value"].sum().idxmax()))
    if not 0 <= example < len(prompts):
        raise WorkbenchError(f"Expected an example from 0 to {len(prompts) - 1}, found {example}.")
    table = table[table["prompt"] == prompts[example]].sort_values("x")
    heads = {member: own.iloc[-1] for member, own in table.groupby("member", sort=False)}
    height = 1.0 * len(heads) + 0.7
    figure, axes = style.panels(
        ax, len(heads), 1, width=style.WIDE, height=height, share=(True, True)
    )
    for here, member in zip(axes[:, 0], result.members, strict=False):
        layer, head = int(heads[member]["layer"]), int(heads[member]["head"])
        colour = looks[member].colour
        for shift, side, fill in ((-0.2, "base", style.GREY), (0.2, "tuned", colour)):
            paid = by_member(result)[member][f"{example}/{side}/last"][layer, head, -KEYS:]
            label = side if side == "base" else looks[member].label
            here.bar(np.arange(len(paid)) + shift, paid, width=0.4, color=fill, label=label)
        style.name(here, looks[member], f": layer {layer}, head {head}")
        here.set(ylabel="attention", ylim=(0, 1))
    tokens = table.drop_duplicates("x")["token"].iloc[-KEYS:]
    written = [style.text(str(token).strip() or "·", 12) for token in tokens]
    axes[-1, 0].set_xticks(range(len(written)), written, rotation=90)
    axes[-1, 0].tick_params(axis="x", labelsize=6, length=1.5)
    axes[-1, 0].set(xlabel="token of the prompt, in order", xlim=(-0.7, len(written) - 0.3))
    style.legend(axes, outside=ax is None)
    marks.counted(axes, [1], "prompt", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "heads",
        "Heads that look elsewhere",
        pattern_differences,
        "Each cell is the total variation distance between the tuned and the base attention "
        "pattern at the last prompt token, as a mean over prompts, with layers upwards. 0 is the "
        "base against itself, and 1 means no key in common. All models share one colour scale.",
        "A pattern also changes when anything before the head changed, so a bright head need not "
        "have changed itself. Keys whose values are small, above all the first token, take "
        "attention without effect.",
    ),
    Drawing(
        KEY,
        "focus",
        "How focused the heads are",
        focus,
        "Each cell is the change of a head's attention entropy, averaged over all tokens of the "
        "prompts, in the fine-tuned model less in the base: below 0 the head attends to fewer "
        "tokens than before.",
        "A head that rests on the first token is focused without looking at anything. The entropy "
        "of long prompts is larger, so compare models on the same prompts only.",
        applies=has("entropy"),
    ),
    Drawing(
        KEY,
        "example",
        "Where the last token of one prompt looks",
        pattern_example,
        "The bars show the attention of the last token over the tokens of one prompt, with the "
        "base in grey and the tuned model in colour, in the head whose pattern changed most on "
        "average (first four models).",
        "This is one prompt, the one that changes most of those stored: an illustration and not an "
        "average. The models show different heads.",
        applies=has("example_tvd"),
    ),
)


def sentence(result: Result) -> Findings:
    """The head whose last-token pattern moved most."""
    own = result.metric("tvd")
    own = own[own["position"] == "last token"]
    parts = []
    for member in result.members:
        rows = own[own["member"] == member]
        best = rows.loc[rows["value"].idxmax()]
        parts.append(
            f"{member}: layer {best['layer']}, head {best['head']} {change(best, '.2f')}, "
            f"median head {rows['value'].median():.2f}"
        )
    count = int(own["n"].max())
    return f"The last-token pattern changes most in these heads (0: none; {count} prompts)", parts
