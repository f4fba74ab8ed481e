"""The best patch is the one that one half of the prompts chose, and its numbers are the other
half's."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests.patching.conftest import boxes, model, paired
from workbench.models import Site
from workbench.patching.best import best_of, chosen, parts_of
from workbench.patching.patches import Patch
from workbench.patching.strongest import halves
from workbench.patching.sweep import Sweep

METRICS = ("recovered:logit_difference", "krs")
N, SEED = 20, 2


@pytest.fixture
def pair(tmp_path):
    return paired(model(seed=0), model(seed=1), tmp_path)


def made(patched: np.ndarray, errors: np.ndarray) -> Sweep:
    """A destination at 1 and a source at 3, of an error of 4. patched, errors: (patches, N)."""
    nothing, ones = np.zeros(N), np.ones(N)
    ends = {"score": nothing, "logit_difference": ones, "squared_error": 4 * ones}
    source = {"score": ones, "logit_difference": 3 * ones, "squared_error": nothing}
    values = {"score": 0 * patched, "logit_difference": patched, "squared_error": errors}
    return Sweep(ends, source, values, 0.0)


def patches(components: str) -> list[Patch]:
    return [
        Patch((Site("attn_out", i),), {"component": name, "layer": i})
        for i, name in enumerate(components)
    ]


def test_the_best_patch_by_hand():
    """Of three layers of "a" the second carries most where it is chosen, and the third elsewhere;
    by error it is the first. "b" has one layer alone."""
    pick, report = halves(N, SEED)
    draw = np.random.default_rng(0)
    patched, errors = draw.normal(0, 0.1, (4, N)), draw.normal(0, 0.1, (4, N))
    for layer, there, here in ((0, 1.2, 1.4), (1, 2.0, 1.6), (2, 1.1, 2.8), (3, 5.0, 5.0)):
        patched[layer, pick] += there
        patched[layer, report] += here
        errors[layer] += 1 + layer
    turned = draw.normal(1.1, 0.3, (4, N))
    turned[:, report[0]] = np.nan  # a prompt without another of its length
    asked = []

    def shuffled(own):
        asked.extend(patch.about["layer"] for patch in own)
        return made(turned[asked], turned[asked])

    table = best_of(made(patched, errors), patches("aaab"), METRICS, shuffled, seed=SEED)
    assert asked == [0, 1, 3]
    found = table.set_index(["component", "metric"])
    assert (table["arm"] == "best").all()
    share = (patched[:, report] - 1).sum(1) / (2 * len(report))
    of_error = 1 - errors[:, report].sum(1) / (4 * len(report))
    known = report[1:]
    for component, metric, layer, value, baseline, other in (
        ("a", METRICS[0], 1, share[1], share[:3].mean(),
         (patched[1, known] - turned[1, known]).mean() / 2),
        ("b", METRICS[0], 3, share[3], share[3], (patched[3, known] - turned[3, known]).mean() / 2),
        ("a", "krs", 0, of_error[0], of_error[:3].mean(),
         (turned[0, known] - errors[0, known]).mean() / 4),
    ):  # fmt: skip
        row, random, beside = (
            found.loc[(component, name)]
            for name in (metric, f"beyond_random:{metric}", f"beyond_shuffled:{metric}")
        )
        assert {row["layer"], random["layer"], beside["layer"]} == {layer}
        assert row["value"] == pytest.approx(value)
        assert row["baseline"] == pytest.approx(baseline)
        assert random["value"] == pytest.approx(value - baseline)
        assert beside["value"] == pytest.approx(other)
        assert (row["n"], random["n"], beside["n"]) == (len(report), len(report), len(known))
        assert row["low"] < row["value"] < row["high"]


def test_what_prompts_share_cancels_in_the_difference():
    """Both patches move with the prompt; one is ahead of the other by .2 in each."""
    prompt = np.random.default_rng(1).normal(2, 5, N)
    values = made(np.stack([prompt + 0.2, prompt - 0.2]), np.ones((2, N)))
    table = best_of(
        values, patches("aa"), METRICS[:1], lambda own: values.of(range(N), [0]), seed=0
    )
    more = table.set_index("metric").loc["beyond_random:recovered:logit_difference"]
    assert (more["low"], more["value"], more["high"]) == pytest.approx((0.1, 0.1, 0.1))
    alone = table.set_index("metric").loc["recovered:logit_difference"]
    assert alone["high"] - alone["low"] > 0.5


def test_nothing_is_chosen_of_an_undefined_share():
    values = made(np.ones((2, N)), np.ones((2, N)))
    same = values._replace(source=values.destination)
    assert chosen(parts_of(same, METRICS[0]), "aa", range(5)) == {}
    assert best_of(same, patches("aa"), METRICS[:1], lambda own: same, seed=0).empty


def test_the_best_layer_is_that_of_the_halves_alone(pair):
    """What the sweep over one half chooses, with the numbers of the sweep over the other."""
    prompts = boxes(9, count=None)
    options = {"sites": ["attn_out"], "controls": 2}
    whole = wb.patching.cross_model(pair, prompts, **options)
    first, last = (
        wb.patching.cross_model(
            pair, wb.tasks.PromptSet("half", tuple(prompts.prompts[i] for i in half)),
            **(options | {"controls": 0}),
        )
        for half in halves(9, 0)
    )  # fmt: skip
    for metric in METRICS:
        one, other = (half.metric(metric) for half in (first, last))
        one, other = (rows[rows["arm"] == "patch"].set_index("layer")["value"]
                      for rows in (one, other))  # fmt: skip
        (row,) = whole.table[
            (whole.table["arm"] == "best") & (whole.table["metric"] == metric)
        ].to_dict("records")
        assert row["layer"] == one.astype(float).idxmax()
        assert row["value"] == pytest.approx(other[row["layer"]], abs=1e-5)
        assert row["baseline"] == pytest.approx(other.mean(), abs=1e-5)
    assert not (first.table["arm"] == "best").any()
