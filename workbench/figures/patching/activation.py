"""Where does the answer come from? Clean activations put into the corrupt run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.patching.layer_maps import by_side, layer_maps
from workbench.figures.patching.recovered import (
    has_heads,
    has_layers,
    layer_head,
    metric_of,
    strongest_patch,
)
from workbench.figures.wording import Findings
from workbench.results.result import Result

KEY = "patching.activation"
HEADING = "Where the answer comes from"
TOKENS = 40  # of a prompt's end that fit two columns


@style.styled
def layer_position(result: Result, ax: Axes | None = None, *, component: str = "") -> Figure:
    """Recovered share of every layer (upwards) and position; a panel for the base, one per model.

    component: which of those patched; the first without heads. Beside each name what a random place
    of the panel recovers.
    """
    own = result.metric(metric_of(result))
    own = own[own["head"].isna() & own["neuron"].isna() & own["component"].notna()]
    component = component or str(own["component"].iloc[0])
    own = own[own["component"] == component]
    positions = list(dict.fromkeys(own[own["arm"] == "patch"]["position"]))[-TOKENS:]
    labels = _labels(result, positions)
    across = "position" if labels[0] == positions[0] else "token of the first prompt"
    return layer_maps(
        ax, by_side(result, own), "position", positions, labels, across,
        f"recovered, {component}\n(0: corrupt, 1: clean)", looks=style.looks(result),
    )  # fmt: skip


def _labels(result: Result, positions: Sequence[str]) -> list[str]:
    """Tokens where all prompts are of one length and each token was patched, else the names."""
    tokens = list(result.provenance.parameters.get("tokens") or [])
    named = {"-1": "last token", "all": "all tokens"}
    found = []
    for position in positions:
        if position.isdigit() and int(position) < len(tokens):
            found.append(style.text(tokens[int(position)].strip() or "·", 10))
        else:
            found.append(named.get(position, position))
    return found


DRAWINGS = (
    Drawing(
        KEY,
        "positions",
        "Where the answer comes from",
        layer_position,
        "Clean activations are put into the corrupt run at each position and layer: 0 leaves the "
        "corrupt answer and 1 gives the clean one. The first map is the base, and the others are "
        "the fine-tuned models. Next to each name is what a random place recovers. A patch of a "
        "run's own activations changes nothing.",
        "The figure shows where information passes, and not where it is computed. A corrupt prompt "
        "that changes several things at once mixes their paths.",
        applies=lambda result, *others: has_layers(result),
    ),
    Drawing(
        KEY,
        "heads",
        "Which heads carry it to the answer",
        layer_head,
        "The maps show the same for single heads at the last token, with layers upwards.",
        "Backup heads hide the part of a head when it is replaced, and heads that act only "
        "together show little alone.",
        applies=lambda result, *others: has_heads(result),
    ),
)


def sentence(result: Result) -> Findings:
    """The strongest patch of each component, beside a random one."""
    return strongest_patch(result)
