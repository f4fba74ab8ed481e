"""The analyses of the catalogue as methods of the scoreboard: how each is asked, and how its table
says where.

An entry is the call, the rows of the table that score places, and, where it has one, the row by
which it claims that anything was found: always an interval that lies beyond its null, none of these
rules is fitted to the truths. Analyses without an entry are in `WITHOUT`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import workbench.behaviour as behaviour
import workbench.forgetting as forgetting
import workbench.patching as patching
import workbench.skills as skills
import workbench.spectral as spectral
import workbench.tuco as tuco
from workbench.lab.known import PLACES, Place
from workbench.loaders import CheckpointPair, load_pair
from workbench.results.result import Result
from workbench.scoreboard.method import Answer, Method
from workbench.tasks.prompts import PromptSet

Ask = Callable[[CheckpointPair, PromptSet, PromptSet | None], Result]
Read = str | Callable[[Result, PromptSet], Mapping[Place, float]]
WITHOUT = {
    "spectral.explained": "it says which inputs a change reads, and no truth names any.",
    "spectral.subspaces": "it compares several models.",
    "spectral.directions": "no truth names single directions of a change.",
    "forgetting.sharpness": "how far a harmful step reaches is known of no pair.",
    "behaviour.coverage": "compiled models are certain, so that drawn answers are all the same.",
    "behaviour.critical": "no truth has answers of several tokens.",
    "behaviour.gain": "which example taught what is known of no pair.",
    "behaviour.advantage": "no truth has worked steps.",
    "behaviour.reliance": "no truth names a part of the prompt.",
    "edits.siblings": "it compares several models.",
    "edits.repair": "which edit is best is known of no pair.",
    "forgetting.association": "it relates several models, and a truth is of one pair.",
    "forgetting.sequential": "it follows a chain of models, and a truth is of one pair.",
    "forgetting.kinds": "which kinds of errors follow a change is known of no pair.",
    "forgetting.samples": "it reads logs of other tools.",
    "forgetting.knowledge": "compiled models read one short question, none solved before it.",
    "forgetting.conjugate": "compiled models know no other form of a question.",
    "forgetting.prune": "no truth names the task that was learned instead.",
    "forgetting.interpolate": "what is best between two models is known of no pair.",
    "behaviour.generate": "which texts should change is known of no pair.",
    "behaviour.faithfulness": "no truth has worked steps.",
    "behaviour.emulate": "it asks of a second, larger model.",
    "patching.steer": "what a direction should do to a text is known of no pair.",
    "patching.contributions": "what a head writes directly is compared with no truth yet.",
    "patching.knockout": "which part is needed is compared with no truth yet.",
    "patching.groups": "it follows the base's circuit, which most compiled bases lack.",
    "patching.mask": "it takes counterfactuals of boxes.",
    "patching.path": "it takes the edges to be patched, and ranks none.",
    "skills.compression": "how small a change can be stored is known of no pair.",
    "skills.calibration": "how sure a compiled model should be is no question.",
    "skills.compose": "it joins several models.",
    "skills.overlap": "it compares several models.",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """ask: the call. places: kind of place -> the rows that score it, as a condition on the table
    (their values, the largest of a place) or a function of the Result. finds: a condition on the
    rows by which it claims that something was learned. verdict: of the Result, and which there can
    be."""

    ask: Ask
    places: Mapping[str, Read] = field(default_factory=dict)
    finds: str = ""
    verdict: Callable[[Result], str] | None = None
    verdicts: tuple[str, ...] = ()

    def read(self, found: Result, prompts: PromptSet) -> Answer:
        table = found.table
        places = {
            kind: scored(table, kind, read) if isinstance(read, str) else read(found, prompts)
            for kind, read in self.places.items()
        }
        finds = bool(len(table.query(self.finds, engine="python"))) if self.finds else None
        return Answer(places, finds, self.verdict(found) if self.verdict else "")


def scored(table: pd.DataFrame, kind: str, rows: str, sign: float = 1.0) -> dict[Place, float]:
    """Place -> sign x value, the largest of those that it has among these rows. kind: names its
    columns."""
    own = table.query(rows, engine="python")
    columns = [*PLACES[kind]]
    best = (sign * own["value"]).groupby([own[column] for column in columns]).max()
    places = [place if isinstance(place, tuple) else (place,) for place in best.index]
    # Numbers stay numbers and all else is text, whatever the columns' types are.
    named = [tuple(i if isinstance(i, str) else int(i) for i in place) for place in places]
    return dict(zip(named, best.astype(float), strict=True))


def _fewer(kind: str, rows: str) -> Read:
    """Rows of which the lowest value is the surest place."""
    return lambda found, prompts: scored(found.table, kind, rows, -1.0)


def _rises(metric: str) -> Read:
    """By how much more the two sides differ after each layer than before it."""

    def read(found: Result, prompts: PromptSet) -> dict[Place, float]:
        rows = found.table.query(f"metric == '{metric}'").sort_values("layer")
        there = dict(zip(rows["layer"].astype(int), rows["value"], strict=True))
        return {(at,): value - there.get(at - 1, 0.0) for at, value in there.items() if at >= 0}

    return read


def _turned(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """How far the singular vectors of each matrix are from the base's, on average."""
    means = found.table.query("metric == 'max_cosine'").groupby(["layer", "component"])["value"]
    return {(int(at), str(name)): 1 - float(v) for (at, name), v in means.mean().items()}  # pyright: ignore


def _counted(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """Intruders of each matrix."""
    own = found.table.query("metric == 'intruder'").groupby(["layer", "component"])["value"]
    return {(int(at), str(name)): float(v) for (at, name), v in own.sum().items()}  # pyright: ignore


def _items(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how much the score of every prompt changed."""
    own = found.table.query("metric == 'item'")
    each = zip(own["prompt"], (own["value"] - own["baseline"]).abs(), strict=True)
    return {(str(prompt),): float(value) for prompt, value in each}


def _texts(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """KL of the answers of every prompt."""
    own = pd.Series(found.tensors["kl"]).groupby(found.tensors["text"]).sum()
    return {(prompts[int(at)].id,): float(value) for at, value in own.items()}  # pyright: ignore


def _similarity(pair: CheckpointPair) -> Result:
    zero = {d.site.name for d in pair.deltas() if not (d.base.any() and d.tuned.any())}
    named = [str(s) for s in pair.sites() if s.layer is not None and s.name not in zero]
    return spectral.similarity(pair, matrices=named)


def _verdict(pair: CheckpointPair, prompts: PromptSet) -> Result:
    """One half is asked, the other is taught."""
    half = len(prompts) // 2
    return forgetting.verdict(
        pair, prompts[:half], lessons=prompts[half:], steps=(1, 2, 4, 8), runs=1
    )


def _said(found: Result) -> str:
    (row,) = found.table.query("arm == 'verdict'")["reading"]
    return str(row).lower()


def _returns(metric: str) -> Callable[[Result], str]:
    """Suppressed where at least half of what was lost is still there, by the middle of the
    interval; erased where less is."""

    def read(found: Result) -> str:
        rows = found.table.query(f"metric == '{metric}'")["value"].dropna()
        return "undecided" if rows.empty else "suppressed" if rows.max() >= 0.5 else "erased"

    return read


LOST = ("suppressed", "erased")
RECOVERED = "metric == 'recovered:logit_difference'"
FEW: dict[str, Any] = {"most": 1, "ranks": (1,), "random": 1}
ENTRIES: dict[str, Entry] = {
    "spectral.intruders": Entry(
        lambda p, a, c: spectral.intruders(p, nulls=False),
        {"matrix": _counted},
        "metric == 'intruder' and value > 0",
    ),
    "spectral.delta_spectrum": Entry(
        lambda p, a, c: spectral.delta_spectrum(p), {"matrix": "metric == 'relative_norm'"},
    ),
    "spectral.similarity": Entry(lambda p, a, c: _similarity(p), {"matrix": _turned}),
    "spectral.scale": Entry(
        lambda p, a, c: spectral.scale_intruders(
            p, a, texts=a.texts, lambdas=(0.0,), arms=("top", "random")
        ),
        finds="metric == 'score_change_of_top_beyond' and (low > 0 or high < 0)",
    ),
    "forgetting.retention": Entry(
        lambda p, a, c: forgetting.retention(p, [a], texts=a.texts),
        {"item": _items},
        "metric == 'score_change' and (low > 0 or high < 0)",
    ),
    "forgetting.probe": Entry(
        lambda p, a, c: forgetting.probe(p, a, folds=2), verdict=_returns("retention_lost"),
        verdicts=LOST
    ),
    "forgetting.revive": Entry(
        lambda p, a, c: forgetting.revive(
            p, a[: len(a) // 2], a[len(a) // 2 :], steps=(1, 2, 4, 8), runs=1
        ),
        verdict=_returns("regained_share"),
        verdicts=LOST,
    ),
    "forgetting.verdict": Entry(
        lambda p, a, c: _verdict(p, a), verdict=_said, verdicts=("kept", *LOST)
    ),
    "behaviour.tokens": Entry(
        lambda p, a, c: behaviour.tokens(p, a, show=0),
        {"item": _texts},
        "metric == 'delta_log_p' and (low > 0 or high < 0)",
    ),
    "tuco.contribution": Entry(
        lambda p, a, c: tuco.contribution(p, a, tokens=0),
        {"item": "metric == 'tuco'", "layer": "metric == 'layer_tuco'"},
    ),
    "tuco.scaling": Entry(
        lambda p, a, c: tuco.scaling(p, a, alphas=(0.0,)),
        finds="metric == 'score_change' and x == 0 and (low > 0 or high < 0)",
    ),
    "patching.cross_model": Entry(
        lambda p, a, c: patching.cross_model(p, a, sites="head", controls=1),
        {"differing head": f"arm == 'patch' and {RECOVERED}"},
        "metric == 'beyond_random:recovered:logit_difference' and low > 0",
    ),
    "patching.restore": Entry(
        lambda p, a, c: patching.restore(p, a, components="matrix"),
        {"matrix": f"arm == 'patch' and {RECOVERED}"},
        f"arm == 'patch' and {RECOVERED} and low > 0",
    ),
    "patching.lens": Entry(lambda p, a, c: patching.lens(p, a, top=1), {"layer": _rises("kl")}),
    "patching.drift": Entry(lambda p, a, c: patching.drift(p, a), {"layer": _rises("frechet")}),
    "patching.patterns": Entry(
        lambda p, a, c: patching.patterns(p, a, examples=1),
        {"head": "metric == 'tvd' and position == 'last token'"},
    ),
    "patching.activation": Entry(
        lambda p, a, c: patching.activation(
            p, a, corrupted=c, sites="z", positions="all", sides=("tuned",), controls=1
        ),
        {"answering head": f"arm == 'patch' and {RECOVERED}"},
    ),
    "patching.attribution": Entry(
        lambda p, a, c: patching.attribution(
            p, a, corrupted=c, sites="z", positions="all", sides=("tuned",), edges=True, exact=1
        ),
        {
            "answering head": "arm == 'patch' and metric == 'attribution'",
            "edge": "arm == 'patch' and metric == 'edge_attribution'",
        },
    ),
    "patching.edge_circuits": Entry(
        lambda p, a, c: patching.edge_circuits(
            p, a, corrupted=c, fractions=(0.02, 1.0), steps=1, random=1
        ),
        {"edge": "side == 'tuned' and metric == 'edge_attribution'"},
    ),
    "patching.circuit": Entry(
        lambda p, a, c: patching.circuit(
            p, a, corrupted=c, sides=("tuned",), depth=1, most=2, random=1, minimal=False
        ),
        {"answering head": _fewer("head", "arm == 'patch' and metric == 'effect'")},
    ),
    "skills.localize": Entry(
        lambda p, a, c: skills.localize(
            p, a, sparsity=0.01, arms=("learned", "random"), random=1, epochs=2
        ),
        {"matrix": "arm == 'learned' and metric == 'entries'"},
    ),
    "skills.alignment": Entry(
        lambda p, a, c: skills.alignment(p, a),
        {"matrix": "metric == 'cosine' and component.notna()"},
    ),
    "skills.blocks": Entry(
        lambda p, a, c: skills.blocks(p, a, **FEW),
        {"matrix": _fewer("matrix", "arm == 'off' and metric == 'log_probability_change'")},
        "arm == 'off' and metric == 'log_probability_change' and (low > 0 or high < 0)",
    ),
    "skills.restore": Entry(
        lambda p, a, c: skills.restore(p, a, shares=(0.5,), arms=("movement", "random"), random=1),
        finds="metric == 'cost' and low > 0",
    ),
}  # fmt: skip


def _method(key: str, entry: Entry) -> Method:
    def function(
        base: Path, tuned: Path, prompts: PromptSet, *, corrupted: PromptSet | None
    ) -> Answer:
        pair = load_pair(base, tuned)
        return entry.read(entry.ask(pair, prompts, corrupted), prompts)

    return Method(key, function, tuple(entry.places), bool(entry.finds), entry.verdicts, "")


METHODS = tuple(_method(key, entry) for key, entry in ENTRIES.items())
