"""The analyses of the catalogue that are asked of a pair and its prompts; those of several models
or of further prompts are in `several`, those that read what other tools wrote in `from_files`.
"""

from __future__ import annotations

from typing import Any

import workbench.behaviour as behaviour
import workbench.forgetting as forgetting
import workbench.patching as patching
import workbench.skills as skills
import workbench.spectral as spectral
import workbench.tuco as tuco
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.results.result import Result
from workbench.scoreboard import from_files, several
from workbench.scoreboard.entry import Entry, layers_of, method
from workbench.scoreboard.reading import (
    by_layer,
    carried,
    counted,
    drawn,
    fewer,
    grouped,
    items,
    novel,
    overconfident,
    returns,
    rises,
    sized,
    steered,
    taken,
    texts,
    turned,
    written,
)
from workbench.tasks.desiderata import Counterfactual, Counterfactuals
from workbench.tasks.prompts import PromptSet


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


def _swapped(prompts: PromptSet, corrupted: PromptSet | None) -> Counterfactuals:
    """Pairs of a prompt and its corrupt partner, whose answer is to be taken over."""
    if corrupted is None or not all(prompt.foils for prompt in prompts):
        raise WorkbenchError(
            "Expected corrupted prompts and a foil of each, since a mask is trained on pairs; "
            "found none."
        )
    made = (
        Counterfactual(clean, dirty, clean.foils[0], {})
        for clean, dirty in zip(prompts, corrupted, strict=True)
    )
    return Counterfactuals(prompts.name, "object value", tuple(made))


LOST = ("suppressed", "erased")
KNOCKED = "side == 'tuned - base' and arm == 'mean' and metric == 'log_probability'"
RECOVERED = "metric == 'recovered:logit_difference'"
FEW: dict[str, Any] = {"most": 1, "ranks": (1,), "random": 1}
ENTRIES: dict[str, Entry] = {
    "spectral.intruders": Entry(
        lambda p, a, c: spectral.intruders(p, nulls=False),
        {"matrix": counted},
        "metric == 'intruder' and value > 0",
    ),
    "spectral.delta_spectrum": Entry(
        lambda p, a, c: spectral.delta_spectrum(p), {"matrix": "metric == 'relative_norm'"},
    ),
    "spectral.similarity": Entry(lambda p, a, c: _similarity(p), {"matrix": turned}),
    "spectral.scale": Entry(
        lambda p, a, c: spectral.scale_intruders(
            p, a, texts=a.texts, lambdas=(0.0,), arms=("top", "random")
        ),
        finds="metric == 'score_change_of_top_beyond' and (low > 0 or high < 0)",
    ),
    "forgetting.retention": Entry(
        lambda p, a, c: forgetting.retention(p, [a], texts=a.texts),
        {"item": items},
        "metric == 'score_change' and (low > 0 or high < 0)",
        states="metric == 'score_change'",
    ),
    "forgetting.kinds": Entry(
        lambda p, a, c: forgetting.kinds(p, a), finds="metric == 'homogeneity' and value < 0.05",
    ),
    "forgetting.probe": Entry(
        lambda p, a, c: forgetting.probe(p, a, folds=2), verdict=returns("retention_lost"),
        verdicts=LOST
    ),
    "forgetting.revive": Entry(
        lambda p, a, c: forgetting.revive(
            p, a[: len(a) // 2], a[len(a) // 2 :], steps=(1, 2, 4, 8), runs=1
        ),
        verdict=returns("regained_share"),
        verdicts=LOST,
    ),
    "forgetting.verdict": Entry(
        lambda p, a, c: _verdict(p, a), verdict=_said, verdicts=("kept", *LOST)
    ),
    "behaviour.tokens": Entry(
        lambda p, a, c: behaviour.tokens(p, a, show=0),
        {"item": texts},
        "metric == 'delta_log_p' and (low > 0 or high < 0)",
        states="metric == 'delta_log_p'",
    ),
    "tuco.contribution": Entry(
        lambda p, a, c: tuco.contribution(p, a, tokens=0),
        {"item": "metric == 'tuco'", "layer": "metric == 'layer_tuco'"},
    ),
    "tuco.scaling": Entry(
        lambda p, a, c: tuco.scaling(p, a, alphas=(0.0,)),
        finds="metric == 'score_change' and x == 0 and (low > 0 or high < 0)",
        states="metric == 'score_change' and x == 0",
    ),
    "patching.cross_model": Entry(
        lambda p, a, c: patching.cross_model(p, a, sites="head", controls=1),
        {"differing head": f"arm == 'patch' and {RECOVERED}"},
        "metric == 'beyond_random:recovered:logit_difference' and low > 0",
        states=f"arm == 'patch' and {RECOVERED}",
    ),
    "patching.restore": Entry(
        lambda p, a, c: patching.restore(p, a, components="matrix"),
        {"matrix": f"arm == 'patch' and {RECOVERED}"},
        f"arm == 'patch' and {RECOVERED} and low > 0",
        states=f"arm == 'patch' and {RECOVERED}",
    ),
    "patching.lens": Entry(
        lambda p, a, c: patching.lens(p, a, top=1), {"layer": rises("kl")},
        states="metric == 'kl'",
    ),
    "patching.drift": Entry(lambda p, a, c: patching.drift(p, a), {"layer": rises("frechet")}),
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
    "patching.difference": Entry(
        # Of what it says nothing is known; that the states differ alike on any text, it claims.
        lambda p, a, c: patching.difference(p, n=16, length=4, random=4, top=5, seed=0),
        finds="metric == 'constant' and arm == 'difference' and low > null_high",
    ),
    "patching.edge_circuits": Entry(
        lambda p, a, c: patching.edge_circuits(
            p, a, corrupted=c, fractions=(1.0,), steps=1, random=1
        ),
        {"edge": "side == 'tuned' and metric == 'edge_attribution'"},
    ),
    "patching.circuit": Entry(
        lambda p, a, c: patching.circuit(
            p, a, corrupted=c, sides=("tuned",), depth=1, most=2, random=1, minimal=False
        ),
        {"answering head": fewer("head", "arm == 'patch' and metric == 'effect'")},
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
        {"matrix": fewer("matrix", "arm == 'off' and metric == 'log_probability_change'")},
        "arm == 'off' and metric == 'log_probability_change' and (low > 0 or high < 0)",
        states="arm == 'off' and metric == 'log_probability_change'",
    ),
    "skills.restore": Entry(
        lambda p, a, c: skills.restore(p, a, shares=(0.5,), arms=("movement", "random"), random=1),
        finds="metric == 'cost' and low > 0",
    ),
    "spectral.explained": Entry(
        lambda p, a, c: spectral.explained(p, a),
        {"matrix": "metric == 'energy' and component.notna()"},
        "metric == 'energy' and component.notna() and low > null_high",
        states="metric == 'energy' and component.notna()",
    ),
    "spectral.directions": Entry(
        lambda p, a, c: spectral.directions(p, a, k=6, most=4, words=1),
        {
            "direction": sized("direction", "metric == 'sensitivity'"),
            "matrix": sized("matrix", "metric == 'sensitivity'"),
        },
        "arm == 'direction' and metric == 'loss_change' and (low > 0 or high < 0)",
    ),
    "behaviour.coverage": Entry(
        lambda p, a, c: behaviour.coverage(p, a, samples=4),
        finds="metric == 'pass_at_change' and (low > 0 or high < 0)",
        states="metric == 'pass_at' and side == 'tuned' and x == 1",
    ),
    "behaviour.gain": Entry(
        lambda p, a, c: behaviour.gain(p, a, a, checked=2), {"item": written},
    ),
    "behaviour.generate": Entry(
        lambda p, a, c: behaviour.generate(p, a, arms=("base", "tuned"), length=1),
        {"item": novel},
        "metric == 'novelty' and arm == 'tuned' and low > 0",
        states="metric == 'novelty' and arm == 'tuned'",
    ),
    "behaviour.emulate": Entry(
        # The larger model is the base itself, of which the answer is known: the tuned model's.
        lambda p, a, c: behaviour.emulate(p, a, str(p.base.folder), betas=(1.0,)),
        finds="metric == 'score_change' and arm == 'emulated' and (low > 0 or high < 0)",
        states="metric == 'loss' and arm == 'emulated'",
    ),
    "patching.steer": Entry(
        lambda p, a, c: patching.steer(p, a, random=2, shown=0),
        {"layer": steered},
        "metric == 'beyond_random:log_probability' and low > 0",
    ),
    "patching.contributions": Entry(
        lambda p, a, c: patching.contributions(p, a),
        {
            "writing head": sized(
                "head", "side == 'tuned - base' and component == 'head' and arm != 'picked'"
            ),
            "layer": by_layer,
        },
        "arm == 'picked' and (low > 0 or high < 0)",
        states="side == 'tuned - base' and arm != 'picked'",
    ),
    "patching.knockout": Entry(
        lambda p, a, c: patching.knockout(p, a, arms=("mean",), components=("head", "layer")),
        {
            "needed head": fewer("head", KNOCKED + " and component == 'head'"),
            "layer": fewer("layer", KNOCKED + " and component == 'layer'"),
        },
        "metric == 'picked' and high < 0",
        states=KNOCKED,
    ),
    "patching.path": Entry(
        lambda p, a, c: patching.path(p, a, corrupted=c, sides=("tuned",)),
        {"writing head": fewer("head", "arm == 'patch' and metric == 'logit_change'")},
    ),
    "patching.mask": Entry(
        lambda p, a, c: patching.mask(
            p, _swapped(a, c), position=None, epochs=20, sides=("tuned",)
        ),
        {"answering head": taken},
    ),
    "patching.groups": Entry(
        lambda p, a, c: patching.groups(p, a, corrupted=c, depth=2, direction="tuned->base"),
        {"differing head": grouped},
    ),
    "skills.compression": Entry(
        lambda p, a, c: skills.compression(
            p, a, ranks=(1, 2, 3, 4, 5, 6), sparsities=(0.1,), random=1
        ),
        {"rank": "arm == 'rank' and metric == 'score' and own == True"},
        states="arm == 'rank' and metric == 'log_probability'",
    ),
    "skills.calibration": Entry(
        lambda p, a, c: skills.calibration(p, a), verdict=overconfident,
        verdicts=("overconfident", "kept"),
        states="metric == 'brier' and arm == 'tuned'",
    ),
    "patching.das": Entry(
        # Trained five times in each of three layers, so where a head carries the variable.
        lambda p, a, c, s, t: patching.das(
            p, _swapped(a, c), k=8, layers=layers_of(p), steps=12, lr=0.1, random=1
        ),
        {"layer": carried},
        needs=("answering head",),
    ),
    "patching.prefix": Entry(
        lambda p, a, c, s, t: patching.prefix(p, a),
        {"prefixed head": drawn},
        "metric == 'prefix_mass' and head.notna() and low > null_high",
        needs=("prefixed head",),
    ),
    "forgetting.sharpness": Entry(
        lambda p, a, c: forgetting.sharpness(p, a, sizes=(0.01,), random=1),
        finds="metric == 'loss_difference' and (low > 0 or high < 0)",
    ),
    **several.ENTRIES,
    **from_files.ENTRIES,
}  # fmt: skip
METHODS = tuple(method(key, entry) for key, entry in ENTRIES.items())
