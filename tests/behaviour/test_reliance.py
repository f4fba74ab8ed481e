"""Every number by plain torch, a model that reads one word alone, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import WORDS, boxes, model, no_gradients, paired, table_value
from tests.conftest import nudged
from tests.patching.conftest import silence
from workbench.behaviour.reliance import _otherwise, _rows, _without, control
from workbench.errors import WorkbenchError
from workbench.tasks import Prompt, PromptSet

OBJECT, QUERY = "correct object", "query box"
OTHER = control(OBJECT)
GIVEN = PromptSet("boxes", boxes(5).prompts)


def twins() -> PromptSet:
    """The first word another one."""
    texts = [f"Erik{p.prompt.removeprefix(p.prompt.split()[0])}" for p in GIVEN]
    made = [replace(p, prompt=t, spans={}) for p, t in zip(GIVEN, texts, strict=True)]
    return PromptSet("twins", tuple(made[::-1]))  # found by their ids


def read(one: Any, prompt: Prompt) -> tuple[float, float]:
    """(whether the answer is greedy, its log p), of answers of one word."""
    start = len(WORDS(prompt.prompt)["input_ids"])
    (target,) = WORDS(prompt.text)["input_ids"][start:]
    said = one(torch.tensor([WORDS(prompt.prompt)["input_ids"]])).logits[0, -1].double()
    return float(said.argmax() == target), float(said.log_softmax(-1)[target])


def test_every_number_by_plain_torch(tmp_path: Path):
    base, tuned = model(tie_word_embeddings=False), model(tie_word_embeddings=False)
    with torch.no_grad():
        for one in (base, tuned):
            one.lm_head.weight.mul_(5)
        nudged(tuned, 0.05)
    pair = paired(base, tuned, tmp_path)
    found = wb.behaviour.reliance(pair, GIVEN, twins(), premises=(OBJECT,), seed=3, batch_size=4)
    draw, arm = np.random.default_rng(3), f"without {OBJECT}"
    cut = {}
    for p in GIVEN:
        word = p.target.strip()
        assert p.prompt.count(f" {word} ") == 1
        cut[p.id] = p.prompt.replace(f" {word} ", " ")
    asked = {
        "given": [p.prompt for p in GIVEN], "flipped": [t.prompt for t in twins()][::-1],
        arm: [cut[p.id] for p in GIVEN],
        OTHER: [_otherwise(p, OBJECT, draw).prompt for p in GIVEN],
    }  # fmt: skip
    numbers = {
        (side, name): np.array([
            read(one, Prompt(p.id, text, p.target)) for p, text in zip(GIVEN, texts, strict=True)
        ]).T
        for side, one in (("base", base), ("tuned", tuned))
        for name, texts in asked.items()
    }  # fmt: skip
    drops = {}
    for (side, name), (score, log_p) in numbers.items():
        at: dict[str, Any] = {"side": side, "arm": name}
        assert table_value(found, "score", **at) == score.mean()
        assert table_value(found, "log_p", **at) == pytest.approx(log_p.mean(), rel=1e-4)
        if name != "given":
            drops[side, name] = numbers[side, "given"] - numbers[side, name]
            own = drops[side, name].mean(1)
            assert table_value(found, "score_drop", **at) == pytest.approx(own[0])
            assert table_value(found, "reliance", **at) == pytest.approx(own[1], rel=1e-3)
    for side in ("base", "tuned"):
        beyond = (drops[side, arm] - drops[side, OTHER])[1].mean()
        value = table_value(found, "reliance_beyond_other", side=side, arm=arm)
        assert value == pytest.approx(beyond, rel=1e-3)
    for name in ("flipped", arm, OTHER):
        moved = (drops["tuned", name] - drops["base", name]).mean(1)
        assert table_value(found, "score_drop_change", arm=name) == pytest.approx(moved[0])
        value = table_value(found, "reliance_change", arm=name)
        assert value == pytest.approx(moved[1], rel=1e-3)
    rows = found.metric("reliance").set_index(["side", "arm"])["baseline"]
    assert rows["tuned", "flipped"] == 0
    assert rows["tuned", arm] == pytest.approx(drops["tuned", OTHER][1].mean(), rel=1e-3)


def test_attribution_by_plain_torch(tmp_path: Path):
    """Two words of answer, by the gradient of their log-probability at the embeddings."""
    base, tuned = model(tie_word_embeddings=False), model(tie_word_embeddings=False)
    with torch.no_grad():
        nudged(tuned, 0.05)
    long = PromptSet("long", tuple(replace(p, target=f"{p.target} .") for p in GIVEN))
    pair = paired(base, tuned, tmp_path)
    found = wb.behaviour.reliance(pair, long, premises=(OBJECT, QUERY), batch_size=3)
    told: dict[str, list[np.ndarray]] = {}
    for side, one in (("base", base), ("tuned", tuned)):
        for p in long:
            ids, whole = WORDS(p.prompt)["input_ids"], WORDS(p.text)["input_ids"]
            x = one.get_input_embeddings()(torch.tensor([whole[:-1]])).detach().requires_grad_()
            with torch.enable_grad():
                said = one(inputs_embeds=x).logits[0].log_softmax(-1)
                total = sum(said[at - 1, whole[at]] for at in range(len(ids), len(whole)))
                (slope,) = torch.autograd.grad(total, x)
            each = (slope * x).sum(-1)[0, : len(ids)].abs().detach().numpy()
            texts = [p.prompt[slice(*p.spans[name])] for name in (OBJECT, QUERY)]
            assert all(len(text.split()) == 1 for text in texts)
            start = len(ids) - len(p.prompt.split())
            places = [start + len(p.prompt[: p.spans[name][0]].split()) for name in (OBJECT, QUERY)]
            told.setdefault(side, []).append(each[places] / each.sum())
    for place, name in enumerate((OBJECT, QUERY)):
        arm = f"without {name}"
        means = {side: np.mean(own, 0)[place] for side, own in told.items()}
        for side, mean in means.items():
            value = table_value(found, "attribution", side=side, arm=arm)
            assert value == pytest.approx(mean, rel=1e-3)
        moved = table_value(found, "attribution_change", arm=arm)
        assert moved == pytest.approx(means["tuned"] - means["base"], abs=1e-5)
        evenly = np.mean([1 / len(WORDS(p.prompt)["input_ids"]) for p in long])
        rows = found.metric("attribution")
        assert rows.loc[rows["arm"] == arm, "baseline"].iloc[0] == pytest.approx(evenly)


def test_all_is_attributed_to_the_one_token_that_a_model_reads(tmp_path: Path):
    """Without attention and MLPs an answer is told from the last token alone."""
    with torch.no_grad():
        made = silence(model(tie_word_embeddings=False))
    last = [
        replace(p, spans={"last": (p.prompt.rindex(" ") + 1, len(p.prompt)), "first": (0, 3)})
        for p in GIVEN
    ]
    found = wb.behaviour.reliance(
        paired(made, made, tmp_path), PromptSet("last", tuple(last)), premises=("last", "first")
    )
    for side in ("base", "tuned"):
        assert table_value(found, "attribution", side=side, arm="without last") == 1
        assert table_value(found, "attribution", side=side, arm="without first") == 0


def test_a_model_that_reads_the_premise_alone_relies_on_it_alone():
    """Its answer has log p 0 where the object stands in the prompt, and -9 elsewhere."""
    prompts = boxes(20)
    draw = np.random.default_rng(0)
    arms = ["given", "flipped", f"without {OBJECT}", OTHER]
    texts = [
        [p.prompt for p in prompts], [p.prompt.replace("Box", "box") for p in prompts],
        [_without(p, OBJECT).prompt for p in prompts],
        [_otherwise(p, OBJECT, draw).prompt for p in prompts],
    ]  # fmt: skip
    knows = [[p.target in text for p, text in zip(prompts, own, strict=True)] for own in texts]
    log_p = np.where(np.array(knows), 0.0, -9.0)
    reads = np.stack([np.array(knows, dtype=float), log_p])[:, None].repeat(2, 1)
    found = [row for row in _rows(arms, reads, 0) if row["metric"] == "reliance"]
    told = {row["arm"]: (row["value"], row["baseline"]) for row in found}
    assert told == {"flipped": (0, 0), f"without {OBJECT}": (9, 0), OTHER: (0, 0)}


def test_one_model_relies_on_the_same_and_unchanged_twins_cost_nothing(tmp_path: Path):
    found = wb.behaviour.reliance(
        paired(model(), model(), tmp_path), GIVEN, GIVEN, premises=[QUERY]
    )
    rows = found.metric("reliance")
    assert (rows[rows["arm"] == "flipped"]["value"] == 0).all()
    for metric in ("reliance_change", "score_drop_change"):
        assert (found.metric(metric)[["value", "low", "high"]] == 0).all(axis=None)
    # Nothing lost of a few prompts is not nothing lost for certain: Newcombe's interval by hand.
    drop = found.metric("score_drop").query("arm == 'flipped'").iloc[0]
    n, z = len(GIVEN), 1.959964
    right = float(found.metric("score").query("arm == 'given'")["value"].iloc[0])
    half = (drop["high"] - drop["low"]) / 2
    assert drop["value"] == 0
    assert right in (0, 1)
    assert half == pytest.approx(z**2 / (n + z**2), rel=0.5)


def test_what_is_taken_out_is_the_span_and_the_blank_behind_it():
    one = Prompt("0", "a bb cc d", " x", spans={"bb": (2, 4), "d": (8, 9), "a": (0, 1)})
    assert _without(one, "bb").prompt == "a cc d"
    assert _without(one, "d").prompt == "a bb cc"
    assert _without(one, "a").prompt == "bb cc d"
    free = Prompt("1", "a bb cc d", " x", spans={"bb": (2, 4)})
    for seed in range(5):  # as many words as the premise has, outside every span
        assert _otherwise(one, "bb", np.random.default_rng(seed)).prompt == "a bb d"
        assert _otherwise(free, "bb", np.random.default_rng(seed)).prompt in ("bb cc d", "a bb d")


def test_spans_that_all_prompts_have_are_taken_where_nothing_is_said(tmp_path: Path):
    found = wb.behaviour.reliance(paired(model(), model(), tmp_path), GIVEN[:2])
    assert {f"without {OBJECT}", f"without {QUERY}", OTHER, control(QUERY)} < set(
        found.table["arm"]
    )


def test_what_cannot_be_asked_is_refused(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    plain = PromptSet("plain", (Prompt("0", "Alice in", " apple"),))
    with pytest.raises(WorkbenchError, match=re.escape("Give --flipped, or spans.")):
        wb.behaviour.reliance(pair, plain)
    with pytest.raises(WorkbenchError, match="has none of 'boxes-"):
        wb.behaviour.reliance(pair, GIVEN, plain)
    with pytest.raises(WorkbenchError, match="Expected a span 'who'"):
        wb.behaviour.reliance(pair, GIVEN, premises=["who"])
    whole = PromptSet("short", (Prompt("0", "Alice in", " apple", spans={"all": (0, 5)}),))
    with pytest.raises(WorkbenchError, match="1 words in a row outside"):
        wb.behaviour.reliance(pair, whole)


__all__ = ["no_gradients"]
