"""What if fine-tuning contributed more, or less?"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import marks, style
from workbench.figures.drawing import Drawing
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "tuco.scaling"
HEADING = "Scaling the contribution"
ITEMS = {"score": "prompts", "log_probability": "prompts", "loss": "texts"}


@style.styled
def scaling_curve(result: Result, ax: Axes | None = None) -> Figure:
    """Score, log-probability of the answer and (where measured) pre-training loss against alpha.

    A line per model with its 95% intervals; the ring is the alpha chosen on half of the prompts.
    Thin vertical: alpha = 1, as tuned. alpha = 0: the base's blocks.
    """
    labels = {
        "score": "score\n(fraction right)",
        "log_probability": "log-probability of\nthe answer (nats)",
        "loss": "pre-training loss\n(nats/token)",
    }
    shown = [metric for metric in labels if result.has(metric)]
    figure, axes = style.panels(
        *(ax, 1, len(shown)), width=style.WIDE if len(shown) > 1 else style.COLUMN, height=2.2
    )
    looks = style.looks(result)
    best = result.metric("best").set_index("member")["x"]
    for here, metric in zip(axes.flat, shown, strict=True):
        table = result.metric(metric)
        for place, (member, look) in enumerate(looks.items()):
            own = table[table["member"] == member].sort_values("x")
            marks.curve(here, own["x"].to_numpy(float), own, look, place=(place, len(looks)))
            chosen = own[own["x"] == best.get(member)]
            here.plot(chosen["x"], chosen["value"], "o", ms=8, mfc="none", mec=look.colour)
        here.axvline(1, color=style.GREY, lw=0.6, zorder=0)
        here.axvline(0, color=style.GREY, ls=style.DASHES[0], lw=1, label="the base's blocks",
                     zorder=0)  # fmt: skip
        here.set(xlabel="scale α (1 = as tuned)", ylabel=labels[metric])
    style.legend(axes, outside=ax is None)
    counts = [(result.metric(metric)["n"], ITEMS[metric]) for metric in shown]
    same = len({marks.number(*pair) for pair in counts}) == 1
    marks.counted(axes, counts[:1] if same else counts, "", outside=ax is None)
    return figure


DRAWINGS = (
    Drawing(
        KEY,
        "alpha",
        "Scaling the contribution of fine-tuning",
        scaling_curve,
        "The curves show the scores when every block's fine-tuning contribution is multiplied by "
        "α, with 95% intervals over prompts. The ring marks the α that was best on a random half "
        "of the prompts. At 1 the model is as tuned, and at 0 it has the base's blocks.",
        "The best of several α always looks good on the prompts that chose it: the gain on the "
        "other half is in the table. α changes neither embedding nor head.",
    ),
)


def sentence(result: Result) -> Findings:
    best = result.metric("best").set_index("member")
    gain = result.metric("gain_score").set_index("member")
    parts = [
        f"{member}: α = {best.loc[member, 'value']:g}, score "
        f"{change(gain.loc[member], '+.3f')} (n = {int(gain.loc[member, 'n'])})"
        for member in result.members
    ]
    return (
        "The best α is chosen on half of the prompts, and its gain over α = 1 is measured on the "
        "other half"
    ), parts
