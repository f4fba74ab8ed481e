"""alpha = 1 is the tuned model and alpha = 0 the base, in scores and in generation."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models.conftest import batch, decoder
from tests.tuco.conftest import mlp_times, pair_of, paired, silence
from workbench import tasks
from workbench.models import Layout
from workbench.models.sides import load
from workbench.tuco.scaling import Scaled, best, scaled, scaling

OPTIONS = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def logits(model) -> torch.Tensor:
    return model(**batch(), use_cache=False).logits


@pytest.mark.parametrize("how", ["full", "lora"])
def test_endpoints(kind: str, how: str, tmp_path: Path):
    sides = load(pair_of(kind, how, tmp_path))
    assert torch.equal(logits(Scaled(sides, 1.0)), logits(sides.tuned))
    blocks_of_base = logits(Scaled(sides, 0.0))
    if how == "lora":
        assert torch.equal(blocks_of_base, logits(sides.base))
        return
    # The tuned embedding, norm and head around the base's blocks.
    tuned, base = sides.layout, Layout(sides.base)
    mixed = copy.deepcopy(sides.tuned)
    for layer in range(tuned.layers):
        state = base.block(layer).state_dict()
        Layout(mixed).block(layer).load_state_dict(state)
    assert torch.equal(blocks_of_base, logits(mixed))


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 1.5, 3.0])
def test_scaling_a_scaled_block(alpha: float, tmp_path: Path):
    """f_tuned = c f_base: alpha gives the model whose blocks are (1 + alpha (c - 1)) f_base."""
    factor = 1.4
    base = silence(decoder("llama"), parts=("o",))
    tuned = mlp_times(silence(decoder("llama"), parts=("o",)), factor)
    expected = mlp_times(silence(decoder("llama"), parts=("o",)), 1 + alpha * (factor - 1))
    model = scaled(paired(base, tuned, tmp_path), alpha)
    found = logits(model)
    torch.testing.assert_close(found, logits(expected), atol=1e-4, rtol=1e-4)
    # To who generates with it, it looks like the tuned model.
    assert model.config is model.tuned.config
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_generation_keeps_both_sides_keys_and_values(
    kind: str, how: str, alpha: float, tmp_path: Path
):
    """With the cache as without it; a cache shared by both blocks would mix their keys."""
    model = Scaled(load(pair_of(kind, how, tmp_path)), alpha)
    ids = {"input_ids": batch()["input_ids"][:1]}
    found = model.generate(**ids, **OPTIONS)
    plain = model.generate(**ids, **OPTIONS, use_cache=False)
    assert torch.equal(found, plain)
    if alpha == 1:
        assert torch.equal(found, model.tuned.generate(**ids, **OPTIONS))


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_cache_goes_on_from_call_to_call(kind: str, how: str, tmp_path: Path):
    """Token by token with a cache as in one pass without."""
    model = Scaled(load(pair_of(kind, how, tmp_path)), 0.6)
    ids = batch()["input_ids"][:1]
    first = model(input_ids=ids[:, :-2], use_cache=True)
    second = model(
        input_ids=ids[:, -2:], past_key_values=first.past_key_values, use_cache=True
    ).logits
    whole = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(second, whole[:, -2:], atol=1e-4, rtol=1e-4)


def test_a_cache_of_another_model_is_refused(tmp_path: Path):
    sides = load(pair_of("llama", "lora", tmp_path))
    ids = batch()["input_ids"][:1]
    cache = sides.tuned(input_ids=ids[:, :-1], use_cache=True).past_key_values
    with pytest.raises(wb.WorkbenchError, match="filled by another model"):
        Scaled(sides, 0.6)(input_ids=ids[:, -1:], past_key_values=cache)


def test_beams_are_refused(tmp_path: Path):
    model = scaled(pair_of("llama", "lora", tmp_path), 0.5)
    with pytest.raises(wb.WorkbenchError, match="beams"):
        model.generate(batch()["input_ids"], num_beams=2)


def test_the_best_alpha_is_chosen_on_one_half_and_judged_on_the_other():
    """Noise has a best alpha too: its gain on the half it was not chosen on is around zero, while
    on the half it was chosen on it is not."""
    noise = np.random.default_rng(0)
    gains, chosen_on = [], []
    for seed in range(40):
        values = {
            a: {m: noise.normal(size=40) for m in ("score", "log_probability")}
            for a in (0.5, 0.75, 1.0, 1.25, 1.5)
        }
        rows = {row["metric"]: row for row in best(values, seed)}
        gains.append(rows["gain_log_probability"]["value"])
        half = np.random.default_rng(seed).permutation(40)[:20]
        x = rows["best"]["value"]
        own = values[x]["log_probability"] - values[1.0]["log_probability"]
        chosen_on.append(own[half].mean())
    assert abs(np.mean(gains)) < 0.12
    assert np.mean(chosen_on) > 0.2


def test_a_planted_best_alpha_is_found():
    values = {a: {m: np.full(20, -abs(a - 0.8)) for m in ("score", "log_probability")}
              for a in (0.5, 0.8, 1.0)}  # fmt: skip
    rows = {row["metric"]: row for row in best(values, 0)}
    assert rows["best"]["value"] == 0.8
    assert rows["best"]["baseline"] == 1.0  # the model as tuned
    assert rows["gain_score"]["value"] == pytest.approx(0.2)
    assert rows["gain_score"]["n"] == 10


def test_a_result_on_the_shipped_family():
    pair = wb.load_pair("data/family/base", "data/family/lora-r1")
    task = tasks.ledger(12, seed=3, split="test")
    texts = tasks.facts(4, seed=3).texts
    result = scaling(pair, task, alphas=(0.0, 0.9), texts=texts)
    scores = result.metric("score").set_index("x")["value"]
    assert list(scores.index) == [0.0, 0.9, 1.0]
    with pair.models() as sides:
        words = pair.base.tokenizer()
        for alpha, model in ((0.0, sides.base), (1.0, sides.tuned)):
            expected = tasks.answers(model, words, task)["correct"].mean()
            assert scores[alpha] == pytest.approx(expected)
            # The answer's log-probability and the texts' loss a token, one at a time.
            said = []
            for one in task:
                start = len(words(one.prompt)["input_ids"])
                ids = words(one.prompt + one.target, return_tensors="pt")["input_ids"]
                log_p = model(input_ids=ids).logits[0].log_softmax(-1)
                own = log_p[start - 1 : -1].gather(1, ids[0, start:, None])
                said.append(float(own.sum()))
            table = result.table[result.table["x"] == alpha].set_index("metric")["value"]
            assert table["log_probability"] == pytest.approx(np.mean(said), rel=1e-4)
            coded = [words(text, return_tensors="pt")["input_ids"] for text in texts]
            losses = [float(model(input_ids=ids, labels=ids).loss) for ids in coded]
            sizes = [ids.shape[1] - 1 for ids in coded]
            assert table["loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-4)
    for metric in ("score", "log_probability", "loss"):
        both = (
            result.metric(name).set_index("x")["value"] for name in (metric, f"{metric}_change")
        )
        value, change = both
        assert change[0.0] == pytest.approx(value[0.0] - value[1.0], abs=1e-6), metric
    assert (result.metric("score_change").set_index("x")["value"][1.0]) == 0
    assert set(result.metric("loss")["n"]) == {4}
    with pytest.raises(wb.WorkbenchError, match="at least 4"):
        scaling(pair, tasks.ledger(3, seed=3))
