"""Which heads carry the information? Masks learned to move it."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.patching.layer_maps import by_side, layer_maps
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "patching.mask"
HEADING = "Which heads carry the information"


def few_units(result: Result) -> bool:
    """Whether a mask covers heads or whole MLPs, and not thousands of neurons."""
    return "neuron" not in result.table or not result.table["neuron"].notna().any()


@style.styled
def masks(result: Result, ax: Axes | None = None) -> Figure:
    """Learned share taken from the source, 1 - m, of every head, layers upwards; a panel for the
    base and one per model. Next to each name the score of the rounded mask and of random ones."""
    own = result.metric("mask").assign(arm="patch")
    unit = "head" if "head" in own else "MLP"
    own = own.assign(value=1 - own["value"])
    if unit == "MLP":
        own = own.assign(MLP=0)
    heads = sorted(int(h) for h in own[unit].unique())
    panels = []
    for name, part in by_side(result, own):
        member = result.members[0] if name == "base" else name
        side = "base" if name == "base" else "tuned"
        scores = result.metric("score")
        scores = scores[(scores["member"] == member) & (scores["side"] == side)]
        told = scores.set_index("arm")["value"]
        score = f"score {told['patch']:.2f} (random {told['random']:.2f})"
        panels.append((f"{name}\n{score}", part))
    return layer_maps(
        ax, panels, unit, heads, [str(h) for h in heads], unit, "taken from the\nsource, 1 − m",
        looks=style.looks(result), counted="pairs", high=1.0,
    )  # fmt: skip


DRAWINGS = (
    Drawing(
        KEY,
        "masks",
        "Which heads carry the information",
        masks,
        "The maps show learned masks: 1 means that a head's output must be taken from the source "
        "prompt for its information to appear in the answer. Next to each name are the score of "
        "the rounded mask on pairs it was not learned on, and that of random masks of its size.",
        "Several masks may do equally well, and one of them is found.",
        applies=few_units,
    ),
)


def sentence(result: Result) -> Findings:
    scores = result.metric("score")
    sizes = result.metric("size")
    parts = []
    for member in result.members:
        said = []
        for side, rows in scores[scores["member"] == member].groupby("side", sort=False):
            own = rows.set_index("arm")
            size = sizes[(sizes["member"] == member) & (sizes["side"] == side)].iloc[0]
            said.append(
                f"{side} {change(own.loc['patch'], '.2f')} with {int(size['value'])} of "
                f"{int(size['n'])} (random {own.loc['random', 'value']:.2f})"
            )
        parts.append(f"{member}: {', '.join(said)}")
    kind = result.provenance.parameters.get("kind", "the desideratum")
    count = int(scores["n"].max())
    return (
        f"The score counts pairs that turn to the {kind} (95% interval over {count} pairs)",
        parts,
    )
