"""Which published findings show in these results? A row a claim: its source, what was seen, and a
verdict that a rule gives, never a person.

Each claim is read recipe by recipe or member by member (or task by task). A reading holds where the
whole 95% interval of what its criterion names says so, contradicts where the whole interval says
otherwise, and else decides nothing:

    reproduced        nothing contradicts, and most readings hold
    partly            some hold, others do not
    not reproduced    none holds, and some contradict
    undecided         nothing decides

Another training run may say otherwise, so that these words are kept for what was read of two runs
or more of every recipe compared, the reference included (`seeds`). Of one run a side they are
"holds in one run", "holds in part, in one run" and "does not hold in one run". What is read, and
what it takes to hold, stands beside each claim. Of readings of one thing in several Results that of
most runs counts, then that of the largest n; and where a claim is read of several runs, readings of
a single one are left out.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from workbench.errors import visible
from workbench.files.writing import Mark
from workbench.findings.claims import CLAIMS, Claim
from workbench.findings.equivalence import told_apart
from workbench.findings.readings import Reading
from workbench.results.recipes import recipes
from workbench.results.result import Result
from workbench.results.run_folder import load

REPRODUCED, PARTLY, NOT, UNDECIDED = "reproduced", "partly", "not reproduced", "undecided"
SEEDS = 2  # runs of every recipe compared, below which nothing is reproduced
IN_ONE_RUN = {
    REPRODUCED: "holds in one run",
    PARTLY: "holds in part, in one run",
    NOT: "does not hold in one run",
    UNDECIDED: UNDECIDED,
}
SHOWN = 3  # readings in one cell
BEFORE = (
    "Brackets hold 95% intervals over n items; a number after a name marks another "
    "checkpoint of that name. This is what is measured for each claim, and when the claim holds:"
)

EARLIER = "In brackets 95% intervals over n items; "  # how that sentence began before


# A file of `page`, by the sentence below its table.
PAGE = Mark(
    "the table of findings",
    lambda path: (
        path.is_file() and any(one.encode() in path.read_bytes() for one in (BEFORE, EARLIER))
    ),
)


def findings(results: Sequence[Result]) -> pd.DataFrame:
    """Every claim that these Results have something to say of.

    results: of one base, from one run or several; checkpoints along a run are left out. Returns one
    row a reading: claim, source, reading, criterion, member, at (where in it), value, low, high, n,
    control, holds, and the claim's verdict and number of seeds on each. Empty where nothing can be
    said.
    """
    whole = told_apart([result for result in results if not _along(result)])
    rows = []
    for claim in CLAIMS:
        kept, seeds = _of_several_runs(whole, _largest(claim.read(whole)))
        about = {
            "claim": claim.name,
            "source": claim.source,
            "reading": claim.reading,
            "criterion": claim.holds,
            "verdict": verdict([one.holds for one in kept], seeds),
        }
        rows += [about | one._asdict() | {"seeds": seeds} for one in kept]
    return pd.DataFrame(rows)


def by_base(runs: Sequence[str | Path]) -> dict[str, pd.DataFrame]:
    """`findings` of all Results under runs/results, by the name of their base.

    runs: what was --out of `workbench compare` or `demo`, or copies that are kept. Raises
    WorkbenchError where one holds no results.
    """
    found: dict[str, list[Result]] = {}
    names: dict[str, str] = {}
    for run in runs:
        for result in load(run).values():
            base = result.provenance.base
            key = str(base.get("fingerprint") or base.get("reference"))
            found.setdefault(key, []).append(result)
            parts = Path(str(base.get("reference"))).parts
            names.setdefault(key, "/".join(parts[-2:]) if parts[-1] == "base" else parts[-1])
    twice = Counter(names.values())
    return {
        names[key] + (f" ({key[:8]})" if twice[names[key]] > 1 else ""): findings(results)
        for key, results in found.items()
    }


def verdict(holds: Sequence[bool | None], seeds: int) -> str:
    """By the rule above. seeds: runs of the recipe that has fewest."""
    yes, no = sum(one is True for one in holds), sum(one is False for one in holds)
    if not yes and not no:
        return UNDECIDED
    if not yes:
        found = NOT
    else:
        found = REPRODUCED if not no and 2 * yes > len(holds) else PARTLY
    return found if seeds >= SEEDS else IN_ONE_RUN[found]


def page(tables: Mapping[str, pd.DataFrame]) -> str:
    """Markdown of `findings` of several bases, a column each, by the base's name."""
    known = _known(tables)
    lines = _lines(tables, ["claim", "source"], _cell)
    notes = [f"- {claim.name}: {claim.reading}; holds if {claim.holds}." for claim in known]
    return "\n".join([*lines, "", BEFORE, "", *notes, ""])


def summary(tables: Mapping[str, pd.DataFrame]) -> str:
    """The verdicts of `page` alone."""
    return "\n".join(_lines(tables, ["claim", "source"], _verdict))


def _known(tables: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """The claims that some table has something to say of."""
    said = {name for table in tables.values() if len(table) for name in table["claim"]}
    return [claim for claim in CLAIMS if claim.name in said]


def _lines(
    tables: Mapping[str, pd.DataFrame], head: Sequence[str], cell: Callable[[pd.DataFrame], str]
) -> list[str]:
    names = [html.escape(visible(name)).replace("|", "/") for name in tables]
    lines = [f"| {' | '.join([*head, *names])} |", "|" + "---|" * (len(head) + len(tables))]
    for claim in _known(tables):
        cells = [cell(t[t["claim"] == claim.name] if len(t) else t) for t in tables.values()]
        lines.append(f"| {' | '.join([claim.name, claim.source, *cells])} |")
    return lines


def _verdict(rows: pd.DataFrame) -> str:
    return f"{rows['verdict'].iloc[0]}" if len(rows) else "not run"


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "not run"
    said = [_said(row) for _, row in rows.head(SHOWN).iterrows()]
    more = f", and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    yes, no = (rows["holds"] == True).sum(), (rows["holds"] == False).sum()  # noqa: E712
    few, many = int(rows["n"].min()), int(rows["n"].max())
    n = f"n = {few}" if few == many else f"n = {few} to {many}"
    seeds = int(rows["seeds"].iloc[0])
    return (
        f"**{rows['verdict'].iloc[0]}**: {'; '.join(said)}{more}. {yes} of {len(rows)} hold, {no} "
        f"contradict; {n}, {seeds} seed{'s' if seeds > 1 else ''}"
    )


def _said(row: pd.Series) -> str:
    name = f"{row['member']}, {row['at']}" if row["at"] else row["member"]
    value, low, high = (_number(row[edge]) for edge in ("value", "low", "high"))
    control = "" if math.isnan(row["control"]) else f" (control {_number(row['control'])})"
    return f"{html.escape(visible(name))} {value} [{low}, {high}]{control}".replace("|", "/")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.2g}"


def _along(result: Result) -> bool:
    """Whether its members are checkpoints of one training run."""
    members = list(result.provenance.members.values())
    recipes = {tuple(str(m.get(name)) for name in ("kind", "rank", "seed")) for m in members}
    return len({m.get("step") for m in members}) == len(members) > len(recipes) == 1


def _largest(seen: Iterable[Reading]) -> list[Reading]:
    """Of readings of one member that of most runs, then of most items; of as many, the first."""
    kept: dict[str, Reading] = {}
    for reading in seen:
        known = kept.get(reading.member)
        if known is None or (known.runs, known.n) < (reading.runs, reading.n):
            kept[reading.member] = reading
    return list(kept.values())


def _of_several_runs(
    results: Sequence[Result], kept: Sequence[Reading]
) -> tuple[list[Reading], int]:
    """The readings of several runs, where there are any, else all; and the training runs of the
    recipe that has fewest: as the readings tell it, and of readings by member as many as are read
    of each recipe."""
    members = {n: about for r in results for n, about in r.provenance.members.items()}
    groups = recipes(members).values()

    def runs(one: Reading) -> int:
        own = next((group for group in groups if _named(group, [one])), ())
        return max(one.runs, len(_named(own, kept)))

    counts = list(map(runs, kept))
    several = any(count >= SEEDS for count in counts)
    left = [
        (one, count)
        for one, count in zip(kept, counts, strict=True)
        if count >= SEEDS or not several
    ]
    return [one for one, _ in left], min((count for _, count in left), default=1)


def _named(runs: Sequence[str], kept: Sequence[Reading]) -> set[str]:
    """Those of the runs that some reading is of."""
    return {
        run
        for run in runs
        if any(re.match(rf"{re.escape(run)}(,| less |$)", one.member) for one in kept)
    }
