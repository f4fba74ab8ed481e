"""Retention and intruder scaling: exact nulls and identities, on the shipped base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import workbench as wb
from tests.conftest import tiny
from workbench import figures, tasks
from workbench.demo import FAMILY
from workbench.forgetting import side_answers
from workbench.forgetting.retention import _over_templates, _questions
from workbench.forgetting.side_answers import Side
from workbench.lab import shipped
from workbench.loaders import Checkpoint, Delta
from workbench.models import merged
from workbench.models.edits import overlay
from workbench.spectral.scale import Found, _notes, capped, direction, find
from workbench.stats import spread
from workbench.tasks import Prompt, PromptSet

BASE = FAMILY / "base"
TEXTS = shipped.mixture(30, seed=1, split="test").texts


@pytest.fixture(scope="module")
def spiked(tmp_path_factory) -> Path:
    """The family's base with one strong direction between random vectors in one matrix."""
    folder = tmp_path_factory.mktemp("spiked") / "tuned"
    shutil.copytree(BASE, folder)
    state = load_file(folder / "model.safetensors")
    weight = state["model.layers.2.self_attn.o_proj.weight"]
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, generator=generator) for n in weight.shape)
    weight += 30 * torch.linalg.matrix_norm(weight, 2) * torch.outer(u / u.norm(), v / v.norm())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_base_against_itself_loses_and_gains_nothing():
    pair = wb.load_pair(BASE, BASE)
    result = wb.forgetting.retention(pair, [tasks.facts(20, seed=3)], texts=TEXTS)
    for metric in ("score_change", "loss_change"):
        rows = result.metric(metric)
        assert (rows[["value", "low", "high"]] == 0).all(axis=None)


def test_a_broken_model_has_forgotten(spiked: Path):
    """Negative control of the null."""
    result = wb.forgetting.retention(wb.load_pair(BASE, spiked), texts=TEXTS)
    change = result.metric("loss_change").iloc[0]
    assert change["low"] > 0
    loss = result.metric("loss").iloc[0]
    assert loss["value"] - loss["baseline"] == pytest.approx(change["value"], rel=1e-5)


def test_own_samples_are_the_seeds():
    pair = wb.load_pair(BASE, BASE)
    model, words = pair.base.load(dtype=torch.float32), pair.base.tokenizer()
    one, same, other = (
        tasks.own_samples(model, words, n=3, length=8, seed=s) for s in (0, 0, 1)
    )  # fmt: skip
    assert one == same
    assert one != other
    assert len(one) == 3


def test_lambda_one_is_the_tuned_model_and_zero_removes_the_plant(spiked: Path):
    pair = wb.load_pair(BASE, spiked)
    prompts = tasks.facts(20, seed=3)
    result = wb.spectral.scale_intruders(
        pair, prompts, lambdas=(0.0, 1.0), texts=TEXTS, arms=("top", "neighbour", "random")
    )
    table = result.table.set_index(["arm", "x", "metric"])["value"]
    tuned = wb.forgetting.retention(pair, [prompts], texts=TEXTS)
    loss = tuned.metric("loss").iloc[0]
    score = tuned.metric("score").iloc[0]
    assert table["top", 0.0, "score"] == pytest.approx(score["baseline"], abs=0.2)
    for arm in ("top", "neighbour", "random"):
        assert table[arm, 1.0, "score"] == pytest.approx(score["value"])
        assert table[arm, 1.0, "score_change"] == 0
        assert table[arm, 1.0, "loss"] == pytest.approx(loss["value"], abs=1e-6)
        assert table[arm, 1.0, "loss_change"] == 0
    assert table["top", 0.0, "loss"] == pytest.approx(loss["baseline"], rel=0.1)
    assert abs(table["neighbour", 0.0, "loss_change"]) < abs(table["top", 0.0, "loss_change"])


def test_scaling_changes_no_singular_value_but_its_own(spiked: Path):
    (found,) = find(wb.load_pair(BASE, spiked), 10, 0.5, "cpu")
    assert found.delta.site.component == "self_attn.o_proj"
    assert found.top == 0
    part = direction(found, "top", 0)
    assert part is not None
    before = torch.linalg.svdvals(found.delta.tuned)
    after = torch.linalg.svdvals(found.delta.tuned - 0.5 * part)
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-3, atol=1e-3)
    assert float(after[0]) == pytest.approx(float(before[0]) / 2, rel=1e-3)


def test_arms_have_the_norm_of_the_intruder(spiked: Path):
    (found,) = find(wb.load_pair(BASE, spiked), 10, 0.5, "cpu")
    sigma = float(found.tuned.values[found.top])
    for arm in ("top", "random"):
        part = direction(found, arm, 0)
        assert part is not None
        assert float(part.norm()) == pytest.approx(sigma, rel=1e-4)
    shrink = direction(found, "shrink", 0)
    assert shrink is not None
    assert float(shrink.norm()) <= sigma * (1 + 1e-4)


def test_where_the_change_is_too_small_to_match_is_said(spiked: Path):
    """A change smaller than the intruder cannot be scaled to its norm; a larger one can, and the
    note says which is which."""
    (found,) = find(wb.load_pair(BASE, spiked), 10, 0.5, "cpu")
    weak = Found(
        Delta(found.delta.site, found.delta.base, whole=found.delta.base * 1.001),
        found.tuned, found.intruders, found.others,
    )  # fmt: skip
    strong = Found(
        Delta(found.delta.site, found.delta.base, whole=found.delta.base * 1000),
        found.tuned, found.intruders, found.others,
    )  # fmt: skip
    assert capped([weak, strong, weak]) == [str(found.delta.site)] * 2
    sigma = float(found.tuned.values[found.top])
    for one in (weak, strong):
        part = direction(one, "shrink", 0)
        assert part is not None
        assert (float(part.norm()) < sigma * (1 - 1e-3)) is (capped([one]) != [])
    told = list(_notes(wb.load_pair(BASE, spiked), [weak, strong], ("top", "shrink")))
    assert any("in 1 of these 2 matrices" in note for note in told)
    assert len(list(_notes(wb.load_pair(BASE, spiked), [weak], ("top",)))) == 1


def test_no_intruder_means_no_edit():
    pair = wb.load_pair(BASE, BASE)
    result = wb.spectral.scale_intruders(pair, tasks.facts(5, seed=3), texts=TEXTS)
    assert set(result.table["x"]) == {1.0}
    assert any("0 of" in note for note in result.provenance.notes)


def test_an_overlay_leaves_the_model_bit_for_bit(spiked: Path):
    pair = wb.load_pair(BASE, spiked)
    model = merged(pair)
    kept = {name: p.clone() for name, p in model.named_parameters()}
    name = "model.layers.2.mlp.up_proj.weight"
    with pytest.raises(KeyError), overlay(model, {name: torch.zeros(512, 192)}, pair):
        assert not dict(model.named_parameters())[name].any()
        raise KeyError
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters())
    with (
        pytest.raises(wb.WorkbenchError, match="no separate parameter"),
        overlay(model, {"nothing": torch.zeros(1)}, pair),
    ):
        pass


def test_divergence_is_nothing_for_one_model_and_the_sum_over_words_by_hand(spiked: Path):
    pair = wb.load_pair(BASE, spiked)
    words = pair.base.tokenizer()
    base, tuned = pair.base.load(dtype=torch.float32), pair.tuned.load(dtype=torch.float32)
    text = "Anna lives in"
    (found,) = tasks.score.text_divergence(base, tuned, words, [text])["kl"]
    ids = words(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        p, q = (m(input_ids=ids).logits[0, :-1].softmax(-1) for m in (tuned, base))
    assert found == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert tasks.score.text_divergence(base, base, words, [text])["kl"].item() == 0
    same = wb.forgetting.retention(wb.load_pair(BASE, BASE), texts=["Now ."])
    assert same.metric("kl")["value"].item() == 0
    far = wb.forgetting.retention(pair, texts=["Now ."])
    assert far.metric("kl")["low"].item() > 0


def test_spread_over_templates_by_hand_and_its_chance():
    """Means .75 and .25 (tuned), .5 and .5 (base); the chance against permutations of our own."""
    template = np.array([0] * 8 + [1] * 8 + [2] * 3)  # a template of three prompts is left out
    tuned = np.array([1] * 6 + [0] * 2 + [1] * 2 + [0] * 6 + [1] * 3)
    base = np.array([1, 0] * 8 + [0] * 3)
    assert spread(tuned[:16], template[:16]) == pytest.approx(0.5)
    prompts = PromptSet(
        "two", tuple(Prompt(f"{i}", "a", "b", template=f"{t}") for i, t in enumerate(template)), 0
    )
    items = replace(_questions(prompts), before=base.astype(float), after=tuned.astype(float))
    found, chance = _over_templates(prompts, items, 0)
    assert (found["metric"], found["value"]) == ("template_spread", pytest.approx(0.5))
    assert (found["n"], found["groups"]) == (16, 2)
    assert found["baseline"] == pytest.approx(0.0)  # of the base
    draw = np.random.default_rng(9)
    dealt = [
        abs(own[:8].mean() - own[8:].mean())
        for own in (draw.permutation(tuned[:16]) for _ in range(20_000))
    ]
    assert chance["value"] == pytest.approx(np.mean(dealt), abs=0.01)
    edges = [chance["low"], chance["high"]]
    assert edges == pytest.approx(list(np.quantile(dealt, [0.025, 0.975])), abs=1e-9)
    assert abs(np.mean(dealt) - 0.5) > 0.2  # negative control: it is not the spread itself


def test_the_table_is_the_models_own(spiked: Path, monkeypatch):
    """Loss and KL of texts of two lengths, in plain torch: weighted by tokens, tuned against base;
    KL on what the base would sample."""
    pair = wb.load_pair(BASE, spiked)
    words = pair.base.tokenizer()
    base, tuned = pair.base.load(dtype=torch.float32), pair.tuned.load(dtype=torch.float32)
    texts = ["Anna lives in", " ".join(TEXTS[:2])]

    def said(text: str) -> tuple[float, float, float, int]:
        """(summed loss of both, summed KL, tokens)."""
        ids = words(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            p, q = (m(input_ids=ids).logits[0, :-1].log_softmax(-1) for m in (tuned, base))
        ours, theirs = (-x.gather(-1, ids[0, 1:, None]).sum() for x in (p, q))
        return float(theirs), float(ours), float((p.exp() * (p - q)).sum()), len(ids[0]) - 1

    drawn = ["Bob", " ".join(TEXTS[2:4])]  # for samples, which here are all of one length
    monkeypatch.setattr(Side, "samples", lambda self, seed: drawn)
    found = wb.forgetting.retention(pair, texts=texts)
    before, after, _, tokens = np.array([said(text) for text in texts]).sum(0)
    loss, change = found.metric("loss").iloc[0], found.metric("loss_change").iloc[0]
    assert loss["value"] == pytest.approx(after / tokens, rel=1e-4)
    assert loss["baseline"] == pytest.approx(before / tokens, rel=1e-4)
    assert change["value"] == pytest.approx((after - before) / tokens, rel=1e-3)
    each = found.metric("item_loss")
    for row, text in zip(each.itertuples(), texts, strict=True):
        theirs, ours, _, count = said(text)
        assert (row.value, row.baseline) == pytest.approx((ours / count, theirs / count), rel=1e-4)
        assert (row.tokens, row.asked) == (count, text)
    _, _, apart, tokens = np.array([said(text) for text in drawn]).sum(0)
    kl = found.metric("kl").iloc[0]
    assert kl["value"] == pytest.approx(apart / tokens, rel=1e-3)
    unweighted = np.mean([s[2] / s[3] for s in map(said, drawn)])
    assert kl["value"] != pytest.approx(unweighted, rel=1e-2)


def test_scores_are_of_transformers_own_greedy_answers():
    """One prompt at a time by `generate`, on the shipped family: what it learned, what it lost."""
    words = AutoTokenizer.from_pretrained(BASE)
    member = BASE.parent / "lora-r1"
    models = {
        "base": AutoModelForCausalLM.from_pretrained(BASE),
        "tuned": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), member),
    }
    facts = tasks.facts(24, seed=5)
    turns = (replace(one, template=("odd", "even")[i % 2]) for i, one in enumerate(facts))
    sets = [replace(facts, prompts=tuple(turns)), tasks.ledger(12, seed=5)]
    found = wb.forgetting.retention(wb.load_pair(BASE, member), sets, texts=TEXTS[:2])
    for given in sets:
        right = {side: [] for side in models}
        for side, model in models.items():
            for one in given:
                ids = words(one.prompt, return_tensors="pt").input_ids
                size = len(words(one.target, add_special_tokens=False).input_ids)
                said = model.eval().generate(
                    input_ids=ids, do_sample=False, max_new_tokens=size, min_new_tokens=size
                )
                right[side].append(words.decode(said[0, ids.shape[1] :]) == one.target.strip())
        before, after = (float(np.mean(right[side])) for side in ("base", "tuned"))
        rows = found.table[found.table["task"] == given.name].set_index("metric")
        assert rows.loc["score", "value"] == pytest.approx(after)
        assert rows.loc["score", "baseline"] == pytest.approx(before)
        assert rows.loc["score_change", "value"] == pytest.approx(after - before)
        if given.name == facts.name:
            means = [np.mean(right["tuned"][start::2]) for start in (0, 1)]
            apart = max(means) - min(means)
            assert rows.loc["template_spread", "value"] == pytest.approx(apart)
    assert before != after  # of the task that was learned


def test_a_model_in_memory_is_read_anew_every_time():
    """It can change between two calls; a checkpoint on disk is read once."""
    words = shipped.tokenizer()
    for reference, second in ((tiny("llama"), 2), (str(BASE), 1)):
        side = Side(Checkpoint(reference), words, 8, "cpu", "float32")
        assert side.once(("a question of this test",), lambda: 1) == 1
        assert side.once(("a question of this test",), lambda: 2) == second
        # Another side of the same checkpoint knows it too; other words make another question.
        again = Side(Checkpoint(reference), words, 8, "cpu", "float32")
        assert again.once(("a question of this test",), lambda: 3) == (1 if second == 1 else 3)
        other = Side(Checkpoint(reference), "other words", 8, "cpu", "float32")
        assert other.once(("a question of this test",), lambda: 4) == 4


def test_a_text_with_nothing_to_predict_is_left_out():
    pair = wb.load_pair(BASE, FAMILY / "lora-r4")
    one, more = (
        wb.forgetting.retention(pair, texts=texts).metric("loss").iloc[0]
        for texts in (["Anna lives in"], ["Anna lives in", ""])
    )
    assert len(pair.base.tokenizer()("")["input_ids"]) == 1  # the start alone
    assert one["n"] == more["n"] == 1
    assert one["value"] == more["value"]


def test_texts_alone_are_said_and_drawn():
    pair = wb.load_pair(BASE, FAMILY / "lora-r4")
    found = wb.forgetting.retention(pair, texts=TEXTS[:6])
    assert "pre-training loss +" in figures.headline(found)
    assert len(found.plot().axes) == 1


def test_losses_of_answers_and_bits_by_hand():
    """Nats a token of the answers alone, bits a byte of whole texts, of transformers' logits."""
    pair = wb.load_pair(BASE, FAMILY / "lora-r1")
    prompts, words = tasks.facts(8, seed=3), pair.base.tokenizer()
    texts = replace(prompts, name="texts", scorer=tasks.Loss())
    found = wb.forgetting.retention(pair, [prompts, texts], texts=TEXTS[:3]).table
    told = found.set_index(["task", "metric"])["value"]
    sides = {}
    for side in ("base", "tuned"):
        model = getattr(pair, side).load(dtype=torch.float32)
        answers, bits = [0.0, 0], [0.0, 0]
        for p in prompts:
            ids = torch.tensor(words(p.text)["input_ids"])
            with torch.no_grad():
                logs = model(ids[None]).logits[0].double().log_softmax(-1)
            each = logs[:-1].gather(1, ids[1:, None])[:, 0]
            answer = len(words(p.prompt)["input_ids"]) - 1
            answers[0] -= float(each[answer:].sum())
            answers[1] += len(ids) - 1 - answer
            first = words.decode(ids[:1], skip_special_tokens=True)
            bits[0] -= float(each.sum()) / np.log(2)
            bits[1] += len(p.text.removeprefix(first).encode())
        sides[side] = answers[0] / answers[1], bits[0] / bits[1]
    for place, (task, metric) in enumerate(
        ((prompts.name, "answer_loss"), ("texts", "bits_per_byte"))
    ):
        assert told[task, metric] == pytest.approx(sides["tuned"][place], rel=1e-4)
        change = sides["tuned"][place] - sides["base"][place]
        assert told[task, f"{metric}_change"] == pytest.approx(change, rel=1e-3)
    assert ("texts", "score") not in told.index


def test_what_else_is_measured_is_resampled_by_the_same_clusters():
    """By the sum acc is the score, so that its intervals are too; a set without the tag has none
    of its own and is told as one of single items."""
    pair = wb.load_pair(BASE, FAMILY / "lora-r1")
    whole = tasks.facts(24, seed=4)
    given = tuple(
        replace(p, foils=p.foils[:3], tags={"passage": str(i // 6)}) for i, p in enumerate(whole)
    )
    first = replace(whole, name="first", prompts=given, scorer=tasks.Choices())
    other = replace(whole, name="other")
    found = wb.forgetting.retention(pair, [first, other], texts=TEXTS[:2], cluster="passage").table
    told = found[found["metric"] != "item"].set_index(["task", "metric"])
    edges = ["value", "low", "high"]
    for one, same in (("score", "acc"), ("score_change", "acc_change")):
        assert list(told.loc[("first", one), edges]) == list(told.loc[("first", same), edges])
    assert ("first", "mcnemar") not in told.index
    assert ("other", "mcnemar") in told.index


@pytest.mark.parametrize("name", ["metric", "limit", "include"])
def test_what_is_of_lm_evals_tasks_alone_is_refused_without_them(name: str):
    pair = wb.load_pair(BASE, FAMILY / "lora-r1")
    with pytest.raises(wb.WorkbenchError, match=f"Expected lm_eval together with {name}"):
        wb.forgetting.retention(pair, [tasks.facts(4, seed=1)], **{name: 3})


def test_an_interrupted_call_goes_on_where_it_was(monkeypatch):
    """What was written before a batch failed is not written again."""
    pair = wb.load_pair(BASE, FAMILY / "lora-r16")
    prompts = replace(tasks.facts(6, seed=8), scorer=tasks.Generation(length=2))
    rows: list[int] = []
    real = LlamaForCausalLM.generate

    def counted(self, input_ids, most: int = 10**6, **more):
        if len(input_ids) <= 2:  # the base's own samples are 64 at once
            if len(rows) == most:
                raise KeyboardInterrupt
            rows.append(len(input_ids))
        return real(self, input_ids, **more)

    asked = {"prompts": [prompts], "texts": TEXTS[:2], "batch_size": 2}
    monkeypatch.setattr(LlamaForCausalLM, "generate", partialmethod(counted, most=2))
    with pytest.raises(KeyboardInterrupt):
        wb.forgetting.retention(pair, **asked)
    assert rows == [2, 2]
    monkeypatch.setattr(LlamaForCausalLM, "generate", counted)
    whole = wb.forgetting.retention(pair, **asked)
    assert rows == [2] * 6  # three batches a side, each once
    side_answers._KEPT.clear()  # as in a new process
    again = wb.forgetting.retention(pair, **asked)
    assert rows == [2] * 6
    pd.testing.assert_frame_equal(again.table, whole.table)


def test_ties_count_as_wrong_and_are_told():
    """Two words for one token: the choice cannot be told, on either side."""
    pair = wb.load_pair(BASE, FAMILY / "lora-r1")
    unknown = (Prompt("a", "Vera has a pet", " qwertz", (" asdfg",)),)  # both <unk>
    other = (Prompt("b", "Vera has a pet", " snake", (" brown",)),)
    prompts = PromptSet("choices", (*unknown, *other), scorer=tasks.Choices())
    found = wb.forgetting.retention(pair, [prompts], texts=TEXTS[:2])
    assert "choices: in 2 of 4 answers a foil is as likely as the target" in str(
        found.provenance.notes
    )
    items = found.metric("item").set_index("prompt")
    assert items.loc["a", ["value", "baseline"]].tolist() == [0, 0]
