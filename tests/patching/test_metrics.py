"""One metric for every patching method: named ones by hand and as before, functions, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model, paired
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.patching.knockout import CHANGE
from workbench.patching.metrics import metric_of
from workbench.patching.strongest import halves
from workbench.results.result import Result
from workbench.tasks import Choices, Continuation, Prompt, PromptSet
from workbench.tasks.batching import Row, batch, rows

WORDS = shipped.tokenizer()
# Answers of two tokens and of one; foils that part at the second token, at the first, and none.
ROWS = [
    Row("long", [1, 2], answer=(3, 4), foils=(5,), wrong=((3, 6), (5, 4, 7))),
    Row("short", [1, 2], answer=(2,), foils=(1, 0), wrong=((1,), (0,))),
    Row("bare", [1, 2], answer=(3,)),
]
LOGITS = torch.arange(48.0).view(3, 2, 8).mul(0.37).sin().mul(3)


def told(asked: Any, **more: Any) -> list[float]:
    metric = metric_of(asked, WORDS)
    assert metric is not None
    return metric(LOGITS, batch(ROWS, range(3), "cpu", 0), **more).tolist()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with torch.no_grad():
        return paired(model(), nudged(model(), seed=1), tmp_path_factory.mktemp("pair"))


def test_named_metrics_by_hand():
    first, second = LOGITS[:, 0], LOGITS[:, 1]
    right, nothing = [float(first[0, 3]), float(first[1, 2])], float("nan")
    best = [right[0] - float(first[0, 5]), right[1] - max(float(first[1, i]) for i in (0, 1))]
    assert told("logit_difference") == pytest.approx([*best, nothing], nan_ok=True)
    mean = right[1] - float(first[1, :2].mean())
    assert told("logit_difference foil=mean") == pytest.approx(
        [best[0], mean, nothing], nan_ok=True
    )
    # The first foil of the first prompt begins like its answer.
    one = [nothing, right[1] - float(first[1, 1]), nothing]
    assert told("logit_difference foil=0") == pytest.approx(one, nan_ok=True)
    # Over all tokens the two that are alike cancel.
    whole = [float(second[0, 4] - second[0, 6]), best[0]]
    assert told("logit_difference tokens=all") == pytest.approx(
        [min(whole), best[1], nothing], nan_ok=True
    )
    log_p = [
        float(first[0].log_softmax(-1)[3] + second[0].log_softmax(-1)[4]),
        float(first[1].log_softmax(-1)[2]), float(first[2].log_softmax(-1)[3]),
    ]  # fmt: skip
    assert told("log_probability") == pytest.approx(log_p)
    assert told("probability") == pytest.approx(np.exp(log_p))
    ranks = [[1 + int((row > row[t]).sum()) for row, t in own] for own in (
        [(first[0], 3), (second[0], 4)], [(first[1], 2)], [(first[2], 3)],
    )]  # fmt: skip
    assert told("rank") == pytest.approx([np.mean(own) for own in ranks])
    assert told("kl", reference=LOGITS) == [0, 0, 0]
    goal = LOGITS.flip(-1)
    by_torch = torch.nn.functional.kl_div(
        first.log_softmax(-1), goal[:, 0].log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert told("kl", reference=goal)[1:] == pytest.approx(by_torch[1:].tolist(), abs=1e-5)
    greedy = [float(one) for one in (
        [int(first[0].argmax()), int(second[0].argmax())] == [3, 4],
        int(first[1].argmax()) == 2, int(first[2].argmax()) == 3,
    )]  # fmt: skip
    assert told("score") == told(Continuation()) == greedy
    assert told(Choices())[:2] == [float(one > 0) for one in best]


def test_a_chosen_foil_is_the_text_behind_any_prompt():
    """The same word for every prompt, whatever the prompts' own foils are."""
    texts = [Prompt("a", "the apple is in the", " box", (" cup",)), Prompt("b", "the", " ball")]
    given = rows(WORDS, PromptSet("two", tuple(texts)), answers=True)
    inputs = batch(given, [0, 1], "cpu", 0)
    logits = torch.randn(2, 1, len(WORDS), generator=torch.Generator().manual_seed(0))
    metric = metric_of('logit_difference foil=" coin"', WORDS)
    assert metric is not None
    coin = WORDS(" coin")["input_ids"][-1]
    wanted = [float(logits[i, 0, given[i].answer[0]] - logits[i, 0, coin]) for i in (0, 1)]
    assert metric(logits, inputs).tolist() == pytest.approx(wanted)


def own(logits: torch.Tensor, inputs: Any) -> torch.Tensor:
    """The logit difference to the best foil, written as a user would."""
    return torch.stack(
        [one[0, row.answer[0]] - one[0, list(row.foils)].max()
         for one, row in zip(logits, inputs.rows, strict=True)]
    )  # fmt: skip


CALLS = {
    "activation": {"sites": ["z"], "positions": [-1], "sides": ("tuned",), "controls": 1},
    "cross_model": {"sites": ["resid_post"], "controls": 1},
    "restore": {"components": "layer"},
    "path": {"sides": ("tuned",)},
    "attribution": {"sides": ("tuned",), "positions": [-1], "edges": True, "exact": 2},
    "knockout": {"arms": ("mean",), "components": ("head",)},
    "circuit": {"depth": 1, "random": 1, "sides": ("tuned",)},
}
# A row of the named difference -> that of the function, in each method.
TWINS = {
    "path": ("logit_change", "change:own"),
    "attribution": ("attribution", "attribution"),
    "circuit": ("minimality:logit_difference", "minimality:own"),
}


@pytest.mark.parametrize("method", CALLS)
def test_the_named_difference_is_the_default_and_a_function_of_it_the_same(pair, method):
    """Named, every row is the one there was before, bit for bit; written as a function, its rows
    are those of the named one, and it picks the same places."""
    prompts = boxes(8)

    def asked(metric: Any) -> Result:
        return getattr(wb.patching, method)(pair, prompts, metric=metric, **CALLS[method])

    usual, function = asked(None), asked(own)
    if method in ("knockout", "circuit"):  # which are picked by another measure without one
        usual = asked("logit_difference")
    else:
        named = asked("logit_difference")
        assert named.table.equals(usual.table)
    names = TWINS.get(method, ("logit_difference", "own"))
    one, other = (made.metric(name) for made, name in zip((usual, function), names, strict=True))
    places = [c for c in one if c not in ("metric", "value", "low", "high", "n", "baseline")]
    assert one[places].astype(str).to_numpy().tolist() == (
        other[places].astype(str).to_numpy().tolist()
    )
    assert other["value"].to_numpy(float) == pytest.approx(
        one["value"].to_numpy(float), abs=1e-6, nan_ok=True
    )


def test_less_of_a_divergence_is_better(pair):
    """Of KL the source's own run has none, and the share of it that is recovered is kl_krs."""
    found = wb.patching.cross_model(
        pair, boxes(6), sites=["resid_post"], metric="kl", controls=0
    ).table
    ends = found[found["metric"] == "kl"].set_index("arm")["value"]
    assert ends["source"] == pytest.approx(0, abs=1e-7)
    assert ends["destination"] > 0
    share, same = (
        found.loc[(found["metric"] == name) & (found["arm"] == "patch"), "value"].to_numpy(float)
        for name in ("recovered:kl", "kl_krs")
    )
    assert share == pytest.approx(same, abs=1e-4)
    # Missed most, on the half that picks, is the head that raises it most beyond the base.
    knocked = wb.patching.knockout(
        pair, boxes(6), arms=("zero",), components=("head",), metric="kl"
    )
    change = wb.patching.per_prompt(knocked, "kl", side=CHANGE, arm="zero")
    pick, report = halves(6, 0)
    most = change.of(pick).table()["value"].idxmax()
    (picked,) = knocked.metric("picked").to_dict("records")
    assert (picked["layer"], picked["head"]) == tuple(change.places.loc[most, ["layer", "head"]])
    assert picked["value"] == pytest.approx(change.values[most, report].mean())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("nothing", "Expected a metric of logit_difference, log_probability"),
        ("rank foil=mean", "rank has no setting 'foil'; it has none"),
        ("logit_difference last=1", "no setting 'last'; it has foil, tokens"),
        ("logit_difference tokens=two", "Expected tokens first or all, found 'two'"),
        ('logit_difference foil="', "cannot be read"),
        (3, "a function metric\\(logits, batch\\)"),
    ],
)
def test_unknown_metrics_are_refused(asked, says):
    with pytest.raises(WorkbenchError, match=says):
        metric_of(asked, WORDS)


def test_what_a_function_gives_is_looked_at(pair):
    with pytest.raises(WorkbenchError, match=r"one number a prompt, shape \(6,\), found \(\)"):
        wb.patching.cross_model(pair, boxes(6), metric=lambda logits, batch: logits.sum())
    with pytest.raises(WorkbenchError, match=r"Attribution follows gradients, and .* 'rank'"):
        wb.patching.attribution(pair, boxes(6), metric="rank")


@pytest.mark.parametrize("method", ["activation", "cross_model", "knockout", "circuit"])
def test_a_metric_that_no_prompt_has_is_refused(method: str, pair):
    with pytest.raises(WorkbenchError, match="No prompt has the metric 'logit_difference foil=99'"):
        getattr(wb.patching, method)(pair, boxes(8), metric="logit_difference foil=99")
