"""Measures, shares and their nulls on arrays by hand; what is patched together; a run that is not
its own is not reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax, rel_entr

import workbench as wb
from tests.patching.conftest import boxes, model, no_gradients, paired  # noqa: F401
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Layout, Site
from workbench.patching import sweep as shared
from workbench.patching import sweep_rows
from workbench.patching.metrics import MEASURES
from workbench.patching.patches import Patch, patches
from workbench.patching.sweep import Side, Sweep
from workbench.tasks.batching import Row, batch, rows

WORDS = shipped.tokenizer()
GIVEN = [
    Row("one", [1, 2], answer=(3,)),
    Row("two", [1], answer=(0, 5), foils=(2,)),
    Row("three", [1, 2, 3], answer=(4, 1, 2), foils=(0, 3, 5)),
]


@pytest.mark.parametrize("tokens", [(6, 6), (6, 8), (8, 6)])
def test_measures_by_hand(tokens: tuple[int, int]):
    """Answers of one, two and three tokens: what stands behind an answer's end is in no measure."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 3, tokens[0], generator=draw)
    reference = logits[0].new_zeros(3, 3, tokens[1])
    both = min(tokens)
    reference[..., :both] = logits[0, ..., :both] + torch.randn(3, 3, both, generator=draw)
    for i, row in enumerate(GIVEN):
        for place, token in enumerate(row.answer):
            logits[1, i, place, token] = 20  # the second run gives every answer
    found = shared.measured(logits, batch(GIVEN, range(3), "cpu", 0), reference)
    ours, theirs = logits.double().numpy(), reference.double().numpy()
    for run in range(2):
        for i, row in enumerate(GIVEN):
            steps, answer = range(len(row.answer)), row.answer
            own, goal = ours[run, i, : len(answer)], theirs[i, : len(answer)]
            p, q = (np.exp(log_softmax(x[:, :both], axis=-1)) for x in (goal, own))
            said = own.argmax(-1).tolist()
            foils = own[0, list(row.foils)] if row.foils else np.array([np.nan])
            expected = {
                "score": float(said == list(answer)),
                "log_probability": log_softmax(own, axis=-1)[steps, answer].sum(),
                "logit_difference": own[0, answer[0]] - foils.max(),
                "squared_error": ((own[:, :both] - goal[:, :both]) ** 2).sum(),
                "kl": rel_entr(p, q).sum(-1).mean(),
                "agreement": float(said == goal.argmax(-1).tolist()),
            }
            assert found.keys() == expected.keys()
            for metric, value in expected.items():
                got = float(found[metric][run, i])
                assert got == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), (
                    metric,
                    row.name,
                )
    half = [
        shared.measured(one, batch(GIVEN, range(3), "cpu", 0), reference)
        for one in (logits.bfloat16(), logits.bfloat16().float())
    ]
    for metric, values in half[0].items():
        torch.testing.assert_close(values, half[1][metric], equal_nan=True)
    assert found["score"].tolist()[1] == [1, 1, 1]
    assert 0 < found["agreement"].mean() < 1


def swept(patches: int = 3, prompts: int = 6) -> Sweep:
    """Random measures of as many patches and prompts."""
    draw = np.random.default_rng(0)
    names = (*MEASURES, "squared_error", "kl", "agreement")
    ends = [{m: draw.random(prompts) + shift for m in names} for shift in (0.0, 1.0)]
    ends[0]["logit_difference"][0] = ends[1]["logit_difference"][0] = np.nan
    many = {m: draw.random((patches, prompts)) for m in names}
    many["logit_difference"][:, 0] = np.nan
    return Sweep(ends[0], ends[1], many, 2.0)


def test_a_summary_by_hand():
    made = swept()
    chosen = [Patch((), {"component": "z", "layer": i, "head": 2 * i}) for i in range(3)]
    table = sweep_rows.summary(made, chosen, zero=made.destination, one=made.source, restored=True)
    assert set(table["arm"]) == {"patch"}
    rows_of = {metric: own.reset_index(drop=True) for metric, own in table.groupby("metric")}
    assert rows_of["score"][["layer", "head"]].to_numpy().tolist() == [[0, 0], [1, 2], [2, 4]]
    for measure in MEASURES:
        known = slice(1, None) if measure == "logit_difference" else slice(None)
        zero, one = (side[measure][known] for side in (made.destination, made.source))
        own = made.patched[measure][:, known]
        plain, share = rows_of[measure], rows_of[f"recovered:{measure}"]
        np.testing.assert_allclose(plain["value"], own.mean(1))
        np.testing.assert_allclose(plain["baseline"], zero.mean())
        np.testing.assert_allclose(share["value"], (own - zero).sum(1) / (one - zero).sum())
        assert (share["baseline"] == 0).all()
        assert (plain["n"] == own.shape[1]).all()
        assert (share["low"] < share["value"]).all()
        assert (share["value"] < share["high"]).all()
    for name, error in (("krs", "squared_error"), ("kl_krs", "kl")):
        before, after = made.destination[error].sum(), made.patched[error].sum(1)
        np.testing.assert_allclose(rows_of[name]["value"], 1 - after / before)
    np.testing.assert_allclose(rows_of["agreement"]["value"], made.patched["agreement"].mean(1))
    np.testing.assert_allclose(
        rows_of["agreement"]["baseline"], made.destination["agreement"].mean()
    )
    ends = sweep_rows.plain(made).set_index(["arm", "metric"])["value"]
    assert ends["destination", "score"] == pytest.approx(made.destination["score"].mean())
    assert ends["source", "score"] == pytest.approx(made.source["score"].mean())
    part = made.of([1, 3], [2])
    assert part.patched["score"].tolist() == [made.patched["score"][2, [1, 3]].tolist()]
    assert part.destination["kl"].tolist() == made.destination["kl"][[1, 3]].tolist()
    assert part.source["kl"].tolist() == made.source["kl"][[1, 3]].tolist()


def test_one_prompt_has_a_share_of_what_is_more_than_nothing():
    """A tenth of a logit at least; of an error, which is never negative, more than rounding."""
    ends = [dict.fromkeys((*MEASURES, "kl", "agreement"), np.array([v])) for v in (0, 0.09)]
    error = {"squared_error": np.array([0.01])}
    many = {m: np.array([[0.045]]) for m in ends[0]} | {"squared_error": np.array([[0.004]])}
    made = Sweep(ends[0] | error, ends[1] | error, many, 2.0)
    chosen = [Patch((), {"component": "z", "layer": 0})]
    table = sweep_rows.summary(made, chosen, zero=ends[0], one=ends[1], restored=True)
    found = table.set_index("metric")["value"]
    assert found["krs"] == pytest.approx(0.6)
    assert np.isnan(found[["kl_krs", *(f"recovered:{m}" for m in MEASURES)]]).all()


def test_measures_that_nothing_has_are_left_out():
    made = swept()
    made.destination["logit_difference"][:] = np.nan
    chosen = [Patch((), {"component": "z", "layer": i}) for i in range(3)]
    table = sweep_rows.summary(made, chosen, zero=made.destination, one=made.source)
    assert set(table["metric"]) == {
        name for m in ("log_probability", "score") for name in (m, f"recovered:{m}")
    }


def test_a_random_site_is_the_mean_of_all_of_its_component():
    values = [("z", 0.1), ("z", 0.4), ("z", 0.9), ("z", np.nan), ("k", 0.5)]
    table = pd.DataFrame(
        [{"component": c, "position": "all", "metric": "krs", "value": v} for c, v in values]
    )
    (row,) = sweep_rows.random_site(table).to_dict("records")  # of one site there is no other
    assert (row["component"], row["arm"], row["n"]) == ("z", "random", 3)
    assert row["value"] == pytest.approx(1.4 / 3)
    # Linear between the order statistics: 0.1 + 0.05 of 0.3, and 0.9 - 0.05 of 0.5.
    assert (row["low"], row["high"]) == (pytest.approx(0.115), pytest.approx(0.875))


def test_shares_of_hardly_anything_are_none():
    """Over prompts: of a gap whose mean is under a hundredth of its own sizes, or rounding."""
    tops = np.ones((1, 40))

    def value(gap: np.ndarray, **options: float) -> float:
        return sweep_rows.shares(tops[:, : len(gap)], gap, **options).value[0]

    sign = np.tile([1.0, -1.0], 20)
    assert np.isnan(value(sign + 0.009))
    assert value(sign + 0.011) == pytest.approx(1 / 0.011)
    assert np.isnan(value(np.full(40, 0.9e-5)))
    assert value(np.full(40, 1.1e-5)) == pytest.approx(1 / 1.1e-5)
    assert value(np.full(40, 1.1e-7), rounding=1e-7) == pytest.approx(1 / 1.1e-7)
    assert np.isnan(value(np.array([0.09])))
    assert value(np.array([0.11])) == pytest.approx(1 / 0.11)
    assert value(np.array([0.01]), alone=1e-3) == pytest.approx(100)
    # A gap that may be none has a share without an interval, a certain one has both.
    wide = sweep_rows.shares(tops, sign + 0.1)
    assert wide.value[0] == pytest.approx(10)
    assert np.isnan([wide.low[0], wide.high[0]]).all()
    sure = sweep_rows.shares(tops, sign / 10 + 1)
    assert sure.low[0] < sure.value[0] < sure.high[0]


def test_runs_are_said_to_hardly_differ_measure_by_measure():
    sign = np.tile([1.0, -1.0], 20)
    zero = dict.fromkeys(MEASURES, np.zeros(40))
    one = {"score": sign, "log_probability": -np.ones(40), "logit_difference": sign * np.nan}
    (note,) = sweep_rows.meaningful(zero, one, "Both")
    assert "Both do not differ reliably in score" in note
    for edge, sure in ((sign + 1, True), (sign - 1, True), (sign, False)):
        assert sweep_rows.differs(edge) == sure
    (note,) = sweep_rows.meaningful(
        *({m: v[:2] for m, v in side.items()} for side in (zero, one)), ""
    )
    assert "n = 2" in note
    # Of one prompt there is no interval to say it by.
    single = {m: v[:1] for m, v in one.items()}
    assert not sweep_rows.meaningful({m: v[:1] for m, v in zero.items()}, single, "Both")


def places(chosen: list[Patch]) -> list[tuple]:
    return [tuple(str(site) for site in patch.sites) for patch in chosen]


def test_patches_by_hand():
    """Three layers, four heads that share two keys and values."""
    layout = Layout(model())
    for kind, heads in (("q", 4), ("z", 4), ("pattern", 4), ("k", 2), ("v", 2)):
        made = patches(layout, kind)
        assert places(made) == [
            (f"{layer}.{kind}.h{head}",) for layer in range(3) for head in range(heads)
        ]
        assert [(p.about["layer"], p.about["head"]) for p in made] == [
            (layer, head) for layer in range(3) for head in range(heads)
        ]
    added = patches(layout, "head", [-1])
    assert places(added) == [(f"{i}.z.h{h}@-1",) for i in range(3) for h in range(4)]
    assert all(p.added and p.about["component"] == "head" for p in added)
    assert len(patches(layout, ["neuron"])) == 3 * 48
    window = patches(layout, "mlp_out", window=3)
    assert places(window) == [
        ("0.mlp_out", "1.mlp_out"),
        ("0.mlp_out", "1.mlp_out", "2.mlp_out"),
        ("1.mlp_out", "2.mlp_out"),
    ]
    assert [p.about["layer"] for p in window] == [0, 1, 2]
    deep = patches(Layout(model(num_hidden_layers=6)), "mlp_out", window=5)
    assert [[site.layer for site in p.sites] for p in deep] == [
        [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5],
    ]  # fmt: skip
    until = patches(layout, "attn_out", cumulative=True)
    assert [len(p.sites) for p in until] == [1, 2, 3]
    assert [p.about["layer"] for p in until] == [0, 1, 2]
    both = patches(layout, "mlp_hidden+z", [None, "query box"])
    assert places(both)[:2] == [
        ("0.mlp_hidden", "0.z"), ("0.mlp_hidden@query box", "0.z@query box"),
    ]  # fmt: skip
    assert [p.about["position"] for p in both[:2]] == ["all", "query box"]
    (single,) = patches(layout, "1.z.h2@-1")
    assert single.about == {"component": "z", "layer": 1, "head": 2, "position": "-1"}
    (neuron,) = patches(layout, [Site("mlp_hidden", 0, neuron=7)])
    assert neuron.about == {
        "component": "mlp_hidden", "layer": 0, "neuron": 7, "position": "all",
    }  # fmt: skip
    for site in (Site("z", 0), Site("q", 0, 1)):
        with pytest.raises(WorkbenchError, match="single heads"):
            Patch((site,), added=True)
    for bad in ("head+z", "resid", "neuron+z"):
        with pytest.raises(WorkbenchError, match="Unknown site"):
            patches(layout, bad)


@pytest.mark.parametrize("kind", ["resid_pre", "z", "mlp_out"])
def test_a_run_that_is_not_its_own_twice_is_no_result(kind: str):
    """A model that draws numbers: patched with its own values it says something else."""
    made, given = model(), rows(WORDS, boxes(2), answers=True)
    side = Side(made, given)
    chosen = patches(Layout(made), f"1.{kind}@-1")
    assert shared.sweep(side, side, chosen, WORDS).patched["score"].shape == (1, 2)
    noisy: Any = made.model.layers[2].mlp
    noisy.register_forward_hook(lambda _module, _args, out: out + torch.randn_like(out))
    with pytest.raises(RuntimeError, match=rf"A patch of 1\.{kind}.* changed the run"):
        shared.sweep(side, side, chosen, WORDS)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_shuffled_control_is_the_next_prompt_of_another_answer(tmp_path, batch_size: int):
    """By plain forward passes, whatever the batches; none for a prompt without another."""
    pair, prompts = paired(model(), model(seed=1), tmp_path), boxes(5, order="object first")
    base, tuned = pair.base.load(), pair.tuned.load()
    given = rows(WORDS, prompts, answers=True)
    given.append(Row("alone", given[0].ids[1:], answer=given[0].answer, foils=given[0].foils))
    site = Site("resid_mid", 1, position=-1)
    made = shared.sweep(
        Side(base, given), Side(tuned, given), [Patch((site,), {"component": "resid_mid"})], WORDS,
        shuffled=True, batch_size=batch_size,
    )  # fmt: skip
    expected = []
    for i, row in enumerate(given[:5]):
        turn = [*given[i + 1 : 5], *given[:i]]
        other = next(one for one in turn if one.answer != row.answer)
        with wb.models.capture(tuned, [Site("resid_mid", 1)]) as seen:
            tuned(input_ids=torch.tensor([other.ids]))
        there = seen[Site("resid_mid", 1)][:, -1:]

        def put(full: torch.Tensor, there: torch.Tensor = there) -> torch.Tensor:
            return torch.cat([full[:, :-1], there], 1)

        with wb.models.replace(base, {Site("resid_mid", 1): put}):
            logits = base(input_ids=torch.tensor([row.ids])).logits[0, -1]
        expected.append(float(logits.log_softmax(-1)[row.answer[0]]))
    found = made.patched["log_probability"][0]
    assert found[:5] == pytest.approx(expected, abs=1e-4)
    assert np.isnan(found[5])


def test_patches_of_what_is_there_already_are_not_run(monkeypatch):
    """Tokens before the first that differs, of which a prompt and its partner have two: the same
    numbers as where all is run, for less."""
    made, given = model(), rows(WORDS, boxes(4), answers=True)
    partners = [
        Row(row.name, [*row.ids[:2], *reversed(row.ids[2:])], answer=row.answer, foils=row.foils)
        for row in given
    ]
    chosen = [
        Patch((Site(kind, layer, position=token),), {"component": kind})
        for kind in ("resid_pre", "resid_post")
        for layer in range(3)
        for token in range(4)
    ]
    found = shared.sweep(Side(made, given), Side(made, partners), chosen, WORDS)
    monkeypatch.setattr(shared, "_idle", lambda *_: False)
    every = shared.sweep(Side(made, given), Side(made, partners), chosen, WORDS)
    for metric, values in every.patched.items():
        np.testing.assert_allclose(found.patched[metric], values, atol=2e-5)
    plain, scores = found.destination["log_probability"], found.patched["log_probability"]
    for patch, own in zip(chosen, scores, strict=True):
        (site,) = patch.sites
        assert isinstance(site.position, int)
        # The stream behind the last layer is read at the last token alone: run, and the same.
        last = (site.kind, site.layer) == ("resid_post", 2)
        assert np.allclose(own, plain, atol=1e-6) == (site.position < 2 or last), site
        assert np.array_equal(own, plain) or site.position >= 2 or last
    assert found.forwards < every.forwards - 5
