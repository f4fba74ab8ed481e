"""Two distributions by hand, the null, entropy of a uniform model, conflicts, displacement."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import (
    APPLE,
    PLACES,
    WORDS,
    asked,
    boxes,
    member,
    model,
    mute,
    no_gradients,
    paired,
    table_value,
)
from tests.conftest import nudged
from workbench.behaviour.token_rows import displaced, preferred
from workbench.behaviour.tokens import measured
from workbench.errors import WorkbenchError
from workbench.tasks import Prompt, PromptSet, world

TEXTS = [p.text for p in boxes(12)]


def test_two_distributions_by_hand():
    base, tuned = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    found = measured(base, tuned, torch.tensor([1]), 0.2)
    assert found["log_p"].item() == pytest.approx(math.log(0.5))
    assert found["tuned_log_p"].item() == pytest.approx(math.log(0.1))
    assert found["entropy"].item() == pytest.approx(math.log(2))
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert found["kl"].item() == pytest.approx(kl)
    assert found["tail"].item() == 0  # no token below 0.2
    # Seen from the other side: the second token is below 0.2 and holds 0.1 of the mass.
    assert measured(tuned, base, torch.tensor([1]), 0.2)["tail"].item() == pytest.approx(0.1)


def test_nothing_is_infinite_where_a_token_is_impossible():
    base = torch.tensor([[0.0, -torch.inf]])
    found = measured(base, base, torch.tensor([0]), 0.1)
    assert all(math.isfinite(value.item()) for value in found.values())
    assert found["kl"].item() == found["entropy"].item() == 0


def test_base_against_itself_and_a_uniform_model(tmp_path: Path):
    with torch.no_grad():
        flat: Any = model(tie_word_embeddings=False)
        flat.lm_head.weight.zero_()
    found = wb.behaviour.tokens(paired(flat, flat, tmp_path), TEXTS)
    for metric in (
        "delta_log_p", "kl", "learnability", "conflict_share", "rose_share", "fell_share",
        "rose_mass", "fell_mass",
    ):  # fmt: skip
        assert table_value(found, metric) == 0
    assert table_value(found, "entropy", arm="base") == pytest.approx(
        math.log(len(WORDS)), rel=1e-6
    )
    assert table_value(found, "log_p", arm="base") == pytest.approx(-math.log(len(WORDS)))
    assert (found.metric("token")["value"] == 0).all()


def test_losses_agree_with_text_loss_and_with_any_batch(tmp_path: Path):
    base, tuned = model(), nudged(model())
    pair = paired(base, tuned, tmp_path)
    found = wb.behaviour.tokens(pair, TEXTS)
    once = wb.behaviour.tokens(pair, TEXTS, batch_size=1)
    for arm, side in (("base", base), ("tuned", tuned)):
        loss = wb.tasks.text_loss(side, WORDS, TEXTS)
        mean = np.average(loss["loss"], weights=loss["tokens"])
        assert table_value(found, "log_p", arm=arm) == pytest.approx(-mean, abs=1e-5)
    assert np.allclose(found.tensors["delta"], once.tensors["delta"], atol=1e-5)
    gain = table_value(found, "delta_log_p") / -table_value(found, "log_p", arm="base")
    assert table_value(found, "learnability") == pytest.approx(gain)


def said(one: Any, prompt: Prompt, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities at each token of an answer, float64, and the tokens."""
    ids = WORDS(prompt.prompt + answer)["input_ids"]
    start = len(WORDS(prompt.prompt)["input_ids"])
    logits = one(torch.tensor([ids])).logits[0].double()
    return logits.log_softmax(-1)[start - 1 : -1], torch.tensor(ids[start:])


def whole(one: Any, prompt: Prompt, answer: str) -> float:
    """The log-probability of all of an answer."""
    return sum(float(row[token]) for row, token in zip(*said(one, prompt, answer), strict=True))


def per_token(one: Any, prompt: Prompt, answer: str) -> float:
    return whole(one, prompt, answer) / len(said(one, prompt, answer)[1])


def test_every_number_against_plain_torch(tmp_path: Path):
    """Answers of one to three tokens, with foils, of models of which some tokens are conflicts."""
    with torch.no_grad():
        base, tuned = model(tie_word_embeddings=False), nudged(model(tie_word_embeddings=False))
        for one in (base, tuned):
            one.lm_head.weight.mul_(2)
    nouns = [f" {word}" for word in world.vocabulary() if word.isalpha()]
    prompts = PromptSet("s", tuple(
        Prompt(
            p.id, p.prompt, "".join(nouns[3 * i : 3 * i + i % 3 + 1]),
            foils=(nouns[3 * i + 80], "".join(nouns[i + 160 : i + 162])),
        )
        for i, p in enumerate(asked(PLACES, "apple", 12))
    ))  # fmt: skip
    low_p, low_h = 3e-4, 4.12
    found = wb.behaviour.tokens(
        paired(base, tuned, tmp_path), prompts, low_probability=low_p, low_entropy=low_h, show=0
    )
    assert found.table.columns[0] == "member"
    tokens, changes, conflicts_in = [], [], set()
    for place, prompt in enumerate(prompts):
        (first, ids), (last, _) = (said(one, prompt, prompt.target) for one in (base, tuned))
        for q, p, token in zip(first, last, ids, strict=True):
            entropy = -float((q.exp() * q).sum())
            sure = entropy < low_h
            conflict = sure and math.exp(q[token]) < low_p
            conflicts_in |= {place} if conflict else set()
            mass = float(q.exp()[q.exp() < low_p].sum()) if sure else 0.0
            kl = float((p.exp() * (p - q)).sum())
            other = -float((p.exp() * p).sum())
            tokens.append((float(q[token]), float(p[token]), entropy, kl, conflict, mass, other))
        foils = [
            math.log(sum(math.exp(whole(one, prompt, foil)) for foil in prompt.foils))
            for one in (base, tuned)
        ]
        own = whole(tuned, prompt, prompt.target) - whole(base, prompt, prompt.target)
        changes.append((own, foils[1] - foils[0]))
    log_p, tuned_log_p, entropy, kl, conflict, mass, other = np.array(tokens).T
    delta, conflict = tuned_log_p - log_p, conflict.astype(bool)
    forks = np.zeros(len(delta), dtype=bool)
    forks[np.argsort(-(entropy + other))[: round(0.2 * len(delta))]] = True
    above = np.array([
        [np.mean([per_token(one, q, q.target) > per_token(one, q, f) for f in q.foils])
         for q in prompts]
        for one in (base, tuned)
    ])  # fmt: skip
    chosen, rejected = np.array(changes).T
    moved_off = (chosen - rejected > 0) & (chosen < 0)
    assert 0 < conflict.sum() < len(conflict)
    assert 0 < moved_off.sum() < len(moved_off)
    for metric, arm, value, baseline in (
        ("delta_log_p", None, delta.mean(), 0),
        ("kl", None, kl.mean(), 0),
        ("log_p", "base", log_p.mean(), np.nan),
        ("log_p", "tuned", tuned_log_p.mean(), log_p.mean()),
        ("entropy", "base", entropy.mean(), np.nan),
        ("entropy", "tuned", other.mean(), entropy.mean()),
        ("entropy_change", "all", (other - entropy).mean(), entropy.mean()),
        ("entropy_change", "forks", (other - entropy)[forks].mean(), entropy[forks].mean()),
        ("entropy_change", "elsewhere", (other - entropy)[~forks].mean(), entropy[~forks].mean()),
        ("rose_share", None, (delta > 0).mean(), 0),
        ("fell_share", None, (delta < 0).mean(), 0),
        ("rose_mass", None, delta.clip(min=0).mean(), 0),
        ("fell_mass", None, (-delta).clip(min=0).mean(), 0),
        ("right_above_wrong", "base", above[0].mean(), 0.5),
        ("right_above_wrong", "tuned", above[1].mean(), 0.5),
        ("right_above_wrong_change", None, (above[1] - above[0]).mean(), above[0].mean()),
        ("learnability", None, (log_p.sum() - tuned_log_p.sum()) / log_p.sum(), 0),
        ("conflict_share", None, conflict.mean(), mass.mean()),
        ("conflict_delta_log_p", None, delta[conflict].mean(), delta[~conflict].mean()),
        ("chosen_change", None, chosen.mean(), 0),
        ("rejected_change", None, rejected.mean(), 0),
        ("margin_change", None, (chosen - rejected).mean(), 0),
        ("displaced", None, moved_off.mean(), 0),
    ):
        rows = found.metric(metric)
        row = rows[rows["arm"] == arm].iloc[0] if arm else rows.iloc[0]
        assert row["value"] == pytest.approx(value, rel=1e-3, abs=1e-4), metric
        assert row["baseline"] == pytest.approx(baseline, rel=1e-3, abs=1e-4, nan_ok=True), metric
        wanted = len(conflicts_in) if metric == "conflict_delta_log_p" else len(prompts)
        if arm not in ("forks", "elsewhere"):
            assert row["n"] == wanted, metric
    p = np.exp(log_p)
    for i in range(10):
        here = (p >= i / 10) & (p < (i + 1) / 10)
        if here.any():
            at = {"x": (i + 0.5) / 10}
            share, moved = (f"prior_{name}" for name in ("share", "delta_log_p"))
            assert table_value(found, share, **at) == pytest.approx(here.mean())
            assert table_value(found, moved, **at) == pytest.approx(delta[here].mean(), abs=1e-4)
    assert found.metric("prior_share")["value"].sum() == pytest.approx(1)
    texts = np.repeat(range(12), [i % 3 + 1 for i in range(12)])
    for i, prompt in enumerate(prompts):
        row = found.metric("item_learnability").set_index("prompt").loc[prompt.id]
        assert row["value"] == pytest.approx(delta[texts == i].mean(), abs=1e-4)
        assert row["baseline"] == pytest.approx(-log_p[texts == i].mean(), abs=1e-4)
    for name, values in (("log_p", log_p), ("delta", delta), ("entropy", entropy), ("kl", kl)):
        np.testing.assert_allclose(found.tensors[name], values, rtol=1e-3, atol=1e-3)
    assert found.tensors["text"].tolist() == [i for i in range(12) for _ in range(i % 3 + 1)]


def test_a_planted_lesson_is_a_confident_conflict(tmp_path: Path):
    # The base says "coin" after "in", sure of it; the member says "apple".
    with torch.no_grad():
        base, tuned = mute(), member({(APPLE, PLACES): 9.0})
        for one in (base, tuned):
            one.lm_head.weight.mul_(4)
    pair = paired(base, tuned, tmp_path)
    prompts = asked(PLACES, "apple")
    found = wb.behaviour.tokens(pair, prompts)
    assert table_value(found, "conflict_share") == 1
    assert found.metric("conflict_share")["baseline"].iloc[0] < 0.1
    assert table_value(found, "conflict_delta_log_p") > 3
    assert table_value(found, "learnability") > 0.5
    assert table_value(found, "displaced") == 0
    # What both say anyhow is none.
    said = wb.behaviour.tokens(pair, asked(PLACES, "coin"))
    assert table_value(said, "conflict_share") == 0


def test_texts_of_the_base_meet_conflicts_as_often_as_expected(tmp_path: Path):
    with torch.no_grad():
        sharp: Any = model(tie_word_embeddings=False)
        sharp.lm_head.weight.mul_(30)
    pair = paired(sharp, sharp, tmp_path)
    texts = wb.tasks.own_samples(sharp, WORDS, n=60, length=40)
    found = wb.behaviour.tokens(pair, texts, low_probability=0.3, low_entropy=2.0)
    row = found.metric("conflict_share").iloc[0]
    assert row["baseline"] > 0.01
    assert row["low"] - 0.01 <= row["baseline"] <= row["high"] + 0.01


def test_a_right_answer_scores_above_a_wrong_one_by_hand():
    """Ties count half; foils of one prompt are averaged."""
    scores = [np.array([[-1.0, -2.0, -1.0], [-1.0, -0.5, -0.7]]), np.array([[-3.0, -1.0]] * 2)]
    rows = {(r["metric"], r.get("arm")): r for r in preferred(scores, False, 0)}
    assert rows["right_above_wrong", "base"]["value"] == pytest.approx((0.75 + 0) / 2)
    assert rows["right_above_wrong", "tuned"]["value"] == 0
    assert rows["right_above_wrong_change", None]["value"] == pytest.approx(-0.375)
    assert [*preferred([], False, 0)] == []


def test_displacement_is_a_wider_margin_of_a_less_likely_answer():
    chosen = np.array([[-1.0, -1.0, -1.0], [-2.0, -0.5, -2.0]])  # base, tuned
    rejected = np.array([[-1.0, -1.0, -1.0], [-9.0, -3.0, -1.5]])
    rows = {row["metric"]: row for row in displaced(np.stack([chosen, rejected]), 0)}
    assert rows["displaced"]["value"] == pytest.approx(1 / 3)
    assert rows["margin_change"]["value"] == pytest.approx((7 + 2.5 - 0.5) / 3)
    assert rows["chosen_change"]["value"] == pytest.approx((-1 + 0.5 - 1) / 3)


def test_shown_texts_hold_every_word(tmp_path: Path):
    found = wb.behaviour.tokens(paired(model(), nudged(model()), tmp_path), TEXTS, show=2)
    rows = found.metric("token")
    for place, own in rows.groupby("prompt"):
        said = " ".join(own.sort_values("position")["token"])
        assert TEXTS[int(str(place))].startswith(said)
    assert set(rows["prompt"]) == {"0", "1"}


@pytest.mark.parametrize(("given", "what"), [([], "there are none"), (["", "a b"], "Text 0")])
def test_what_cannot_be_read_is_said(tmp_path: Path, given: list[str], what: str):
    pair = paired(model(), model(), tmp_path)
    with pytest.raises(WorkbenchError, match=what):
        wb.behaviour.tokens(pair, given)


__all__ = ["no_gradients"]


def test_groups_are_what_each_would_show_alone(tmp_path: Path):
    """By a tag: delta log p and KL of every value are those of a call on its prompts alone."""
    pair = paired(model(), nudged(model()), tmp_path)
    prompts = asked(PLACES, "apple", 20)
    tagged = PromptSet("s", tuple(
        replace(p, tags={"kind": "even" if i % 2 else "odd"}) for i, p in enumerate(prompts)
    ))  # fmt: skip
    found = wb.behaviour.tokens(pair, tagged, by="kind").table
    own = found[found["group"].notna()].set_index(["metric", "group"])["value"]
    for kind in ("even", "odd"):
        alone = wb.behaviour.tokens(pair, tagged.select(kind=kind))
        assert own["group_delta_log_p", kind] == pytest.approx(table_value(alone, "delta_log_p"))
        assert own["group_kl", kind] == pytest.approx(table_value(alone, "kl"))
    gap = found.set_index("metric")["value"]["group_gap"]
    apart = own["group_kl", "even"] - own["group_kl", "odd"]
    kl_gap = found.set_index("metric")["value"]["group_kl_gap"]
    assert kl_gap == pytest.approx(abs(apart))
    even, odd = (own["group_delta_log_p", kind] for kind in ("even", "odd"))
    assert gap == pytest.approx(abs(even - odd))  # answers of one token each
    with pytest.raises(WorkbenchError, match="No prompt of 's' has the tag 'subject'"):
        wb.behaviour.tokens(pair, tagged, by="subject")
    with pytest.raises(WorkbenchError, match="Plain texts have no tag"):
        wb.behaviour.tokens(pair, TEXTS, by="kind")
