"""Which tokens decide the answer? Answers after single tokens were replaced."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures import style
from workbench.figures.drawing import Drawing
from workbench.figures.member_panels import by_member, error_bars, labelled
from workbench.figures.wording import Findings, change
from workbench.results.result import Result

KEY = "behaviour.critical"
HEADING = "Tokens that decide the answer"
ARMS = {
    "fork": "nearest\nrunner-up",
    "moved": "moved most by\nfine-tuning",
    "random": "random\n(chance)",
}


@style.styled
def answers_flipped(result: Result, ax: Axes | None = None) -> Figure:
    """Share of replaced tokens after which the answer is another one, by kind of token; a panel per
    fine-tuned model. Black: the base in its own texts."""
    figure, axes, panels = by_member(result, ax, 1.9, share=(True, True))
    table = result.metric("flip")
    for here, (member, look) in panels:
        own = table[table["member"] == member]
        for shift, side, colour, marker in (
            (-0.1, "base", style.BLACK, "s"),
            (0.1, "tuned", look.colour, look.marker),
        ):
            rows = own[own["side"] == side].set_index("arm").loc[list(ARMS)]
            at = [place + shift for place in range(len(ARMS))]
            here.errorbar(at, rows["value"], error_bars(rows), fmt=marker, color=colour, ms=4,
                          lw=0.9, label=side)  # fmt: skip
        here.set_xticks(range(len(ARMS)), list(ARMS.values()), fontsize=style.SMALL)
        here.set_xlim(-0.5, len(ARMS) - 0.5)
        here.set_ylim(-0.03, 1.03)
        style.name(here, look)
    what = ("share of replacements\nthat change the answer", table)
    return labelled(figure, axes, what, "token that is replaced", result, ax)


DRAWINGS = (
    Drawing(
        KEY,
        "flips",
        "Which tokens decide the answer",
        answers_flipped,
        "In each model's own greedy text one token is replaced by the runner-up and the text is "
        "written on. The points show how often the answer is another one then: for the tokens "
        "whose runner-up was nearest, for those that fine-tuning moved most, and for random ones, "
        "which estimate the share of tokens that decide anything.",
        "A runner-up can be the same word in another spelling. The two models write different "
        "texts, so their tokens are not the same ones.",
    ),
)


def sentence(result: Result) -> Findings:
    parts = []
    table = result.table
    for member in result.members:
        own = table[(table["member"] == member) & (table["metric"] == "flip")]
        rows = own.set_index(["side", "arm"]).sort_index()
        told = ", ".join(
            f"{change(rows.loc[('tuned', arm)], '.2f')} of {arm} tokens" for arm in ARMS
        )
        base = rows.loc[("base", "random"), "value"]
        n = rows.loc[("tuned", "random"), "n"]
        parts.append(f"{member}: {told} (base, random {base:.2f}; n = {n:.0f})")
    return "Replaced by the runner-up, these shares of tokens change the answer", parts
