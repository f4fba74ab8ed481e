"""A wrapper leaves the probe what it was; an erased feature leaves it at chance."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.forgetting.conftest import erased, knower, nouns, pair, value, wrapped
from tests.skills.conftest import LAYER
from workbench.forgetting.probe import STRENGTHS, _best, _depths
from workbench.forgetting.side_answers import both, fresh
from workbench.progress import progress
from workbench.tasks import PromptSet


def test_a_wrapper_keeps_the_probe_and_an_erased_feature_does_not(tmp_path: Path):
    prompts = nouns()
    kept = wb.forgetting.probe(pair(tmp_path / "wrapped", wrapped()), prompts)
    gone = wb.forgetting.probe(pair(tmp_path / "erased", erased()), prompts)
    for layer in range(-1, LAYER):  # before the wrapper nothing changed at all
        assert value(kept, "accuracy_change", layer=layer) == 0
    assert value(kept, "accuracy", arm="tuned", layer=LAYER) > 0.95
    assert value(kept, "retention") == pytest.approx(1, abs=0.05)
    for layer in range(-1, LAYER + 1):
        assert value(gone, "accuracy", arm="base", layer=layer) > 0.95
        assert value(gone, "accuracy", arm="tuned", layer=layer) < 0.7
        assert value(gone, "selectivity", arm="base", layer=layer) > 0.3
    assert value(kept, "retention_lost") == pytest.approx(1, abs=0.05)
    row = gone.metric("retention_lost").iloc[0]
    assert row["low"] <= 0.2
    assert row["high"] < 0.5
    # A model that never learned the words cannot tell them apart: the control is at chance.
    assert value(gone, "accuracy", arm="random weights", layer=LAYER) < 0.7


def test_every_number_by_hand():
    """Random readings of 60 prompts at three depths."""
    draw, n, seed = np.random.default_rng(1), 60, 1

    def right(*chances: float) -> np.ndarray:
        return (draw.random((3, n)) < np.array(chances)[:, None]).astype(float)

    read = {
        "base": right(0.9, 0.9, 0.9), "tuned": right(0.5, 0.7, 0.8),
        "random weights": right(0.3, 0.3, 0.3), "base, shuffled": right(0.3, 0.4, 0.5),
        "tuned, shuffled": right(0.5, 0.3, 0.4), "base, vocabulary": right(0.8, 0.7, 0.9),
        "tuned, vocabulary": right(0.4, 0.6, 0.3), "base, random directions": right(0.4, 0.2, 0.3),
        "tuned, random directions": right(0.3, 0.3, 0.2),
    }  # fmt: skip
    rows = {(row["metric"], row["arm"], row["layer"]): row for row in _depths(read, 0.35, seed)}
    assert len(rows) == 3 * (9 + 1 + 2 + 4)
    for depth in range(3):
        at = {arm: values[depth].mean() for arm, values in read.items()}
        for arm, wanted in at.items():
            row = rows["accuracy", arm, depth - 1]
            assert (row["value"], row["baseline"]) == (pytest.approx(wanted), 0.35)
        for metric, arm, wanted in (
            ("accuracy_change", "tuned", at["tuned"] - at["base"]),
            ("selectivity", "base", at["base"] - at["base, shuffled"]),
            ("selectivity", "tuned", at["tuned"] - at["tuned, shuffled"]),
        ):
            row = rows[metric, arm, depth - 1]
            assert (row["value"], row["baseline"]) == (pytest.approx(wanted), 0)
        for arm in ("base", "tuned"):
            words, random = at[f"{arm}, vocabulary"], at[f"{arm}, random directions"]
            row = rows["kept", arm, depth - 1]
            assert row["value"] == pytest.approx(words / at[arm])
            assert row["baseline"] == pytest.approx(random / at[arm])
            assert rows["kept_beyond_random", arm, depth - 1]["value"] == pytest.approx(
                words - random
            )
    choose, report = np.arange(0, n, 3), np.setdiff1d(np.arange(n), np.arange(0, n, 3))
    gains = [(read["base"][d] - read["random weights"][d])[choose].mean() for d in range(3)]
    depth = gains.index(max(gains))
    there = (read["base"] - read["random weights"])[:, report].mean(1)
    # So that it matters which prompts choose, and that chance is taken off.
    assert depth not in (there.argmax(), read["base"][:, choose].mean(1).argmax())
    base, tuned, never = (
        read[arm][depth][report].mean() for arm in ("base", "tuned", "random weights")
    )
    found = {row["metric"]: row for row in _best(read, "retention", choose, report, seed)}
    assert found["retention"]["value"] == pytest.approx((tuned - never) / (base - never))
    assert found["base_gain"]["value"] == pytest.approx(base - never)
    for metric, baseline in (("retention", 1), ("base_gain", 0)):
        row = found[metric]
        assert (row["layer"], row["n"], row["baseline"]) == (depth - 1, len(report), baseline)
    # The same numbers of what is lost, without the gain; nothing of nothing.
    (lost,) = _best(read, "retention_lost", choose, report, seed)
    assert lost["value"] == found["retention"]["value"]
    (none,) = _best(read, "retention_lost", choose, report[:0], seed)
    assert (none["n"], np.isnan(none["value"])) == (0, True)


def test_base_against_itself(tmp_path: Path):
    found = wb.forgetting.probe(pair(tmp_path, knower()), nouns())
    assert (found.metric("accuracy_change")["value"] == 0).all()
    assert value(found, "retention") == 1
    assert np.isnan(value(found, "retention_lost"))  # nothing is lost


def test_a_label_nobody_can_know_is_not_found(tmp_path: Path):
    """Negative control: labels drawn at random have no retention to report."""
    prompts = nouns()
    draw = np.random.default_rng(0)
    random = wb.tasks.PromptSet("r", tuple(
        wb.tasks.Prompt(p.id, p.prompt, p.target, tags={"coin": str(draw.integers(2))})
        for p in prompts
    ))  # fmt: skip
    found = wb.forgetting.probe(pair(tmp_path, knower()), random, label="coin")
    row = found.metric("base_gain").iloc[0]
    assert row["low"] <= 0
    assert np.isnan(value(found, "retention"))


def test_streams_are_the_models_own_hidden_states(tmp_path: Path):
    """transformers' hidden_states, but for the last, which it norms."""
    import torch

    base, _ = both(pair(tmp_path, knower()), 4, "cpu", "float32")
    model = fresh(base.model, 0)
    base.model = model
    found = base.streams(nouns(0, 7))
    for i, prompt in enumerate(nouns(0, 7)):
        ids = torch.tensor([base.words(prompt.prompt)["input_ids"]])
        states = model(ids, output_hidden_states=True).hidden_states
        for depth in range(len(states) - 1):
            wanted = states[depth][0, -1].numpy()
            assert np.allclose(found[depth, i], wanted, atol=1e-5)


def test_a_fresh_model_is_random_and_leaves_the_random_numbers_alone(tmp_path: Path):
    import torch

    model = knower()
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = fresh(model, 0), fresh(model, 0), fresh(model, 1)
    assert torch.rand(1) == first
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.get_parameter(weight), two.get_parameter(weight))
    assert not torch.equal(one.get_parameter(weight), other.get_parameter(weight))
    assert not torch.equal(one.get_parameter(weight), model.get_parameter(weight))


def test_what_cannot_be_probed_is_said(tmp_path: Path):
    given = pair(tmp_path, knower())
    with pytest.raises(wb.WorkbenchError, match="tag 'colour'"):
        wb.forgetting.probe(given, nouns(), label="colour")
    with pytest.raises(wb.WorkbenchError, match="two labels with 5 different questions"):
        wb.forgetting.probe(given, nouns(0, 9))
    with pytest.raises(wb.WorkbenchError, match="2 folds"):
        wb.forgetting.probe(given, nouns(), folds=1)


def test_the_same_question_twice_is_not_read_from_its_twin(tmp_path: Path):
    """Every word three times: a probe that saw one could say the other without any feature."""
    words = nouns(0, 60)
    again = [replace(p, id=f"{p.id}-{i}") for i in range(3) for p in words]
    found = wb.forgetting.probe(pair(tmp_path, erased()), PromptSet("nouns", tuple(again)))
    for layer in range(-1, LAYER + 1):
        assert value(found, "accuracy", arm="base", layer=layer) > 0.9
        assert value(found, "accuracy", arm="tuned", layer=layer) < 0.75
        assert value(found, "accuracy", arm="random weights", layer=layer) < 0.75


def test_how_a_probe_is_regularised_and_what_it_reads(tmp_path: Path):
    """Ridge strengths of a tenth to a hundred thousand by powers of ten; the answer by default."""
    assert STRENGTHS == (0.1, 1, 10, 100, 1000, 10_000, 100_000)
    given = pair(tmp_path, knower())
    for label, said in ((None, "answer"), ("coin", "coin")):
        coins = nouns(0, 40)
        tagged = replace(coins, prompts=tuple(
            replace(one, tags={**one.tags, "coin": "head" if i % 2 else "tail"})
            for i, one in enumerate(coins)
        ))  # fmt: skip
        found = wb.forgetting.probe(given, tagged, label=label, folds=2)
        assert found.provenance.parameters["label"] == said


def test_the_bar_ends_where_the_work_does(tmp_path: Path, monkeypatch):
    """Three sides and two controls, each at the embedding and behind every layer."""
    bars: list[Any] = []

    def told(**options: Any) -> Any:
        bars.append(progress(**options))
        return bars[-1]

    monkeypatch.setattr(sys.modules["workbench.forgetting.probe"], "progress", told)
    wb.forgetting.probe(pair(tmp_path, knower()), nouns(0, 20), folds=2)
    (bar,) = bars
    layers = knower().config.num_hidden_layers
    assert bar.total == bar.n == 5 * (layers + 1)
