"""The path's ends are the models, its middle a quadratic's; mixed logits are a mixed head."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.patching.conftest import model
from tests.skills.conftest import APPLE, BOOK, JOBS, PLACES, asked, member, no_gradients, paired  # noqa: F401
from workbench import tasks
from workbench.demo import FAMILY
from workbench.forgetting.interpolate import _chosen, _mixed, barriers, chord
from workbench.lab import shipped
from workbench.tasks import Prompt, PromptSet

BASE = FAMILY / "base"


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3))
def test_a_linear_model_s_path_is_a_quadratic(curve: float, slope: float, start: float):
    """L(alpha) = c alpha^2 + b alpha + a exceeds its chord by -c alpha (1 - alpha), at most -c / 4
    for a concave one and 0 at the ends for a convex one."""
    alphas = np.linspace(0, 1, 11)
    losses = (curve * alphas**2 + slope * alphas + start)[:, None]
    excess = (losses - chord(alphas, losses))[:, 0]
    np.testing.assert_allclose(excess, -curve * alphas * (1 - alphas), atol=1e-9)
    found = barriers(alphas, np.repeat(losses, 3, axis=1))
    # 0.5 is one of the alphas.
    assert found.value[0] == pytest.approx(max(0.0, -curve / 4), abs=1e-9)


def test_squared_error_of_a_linear_model_along_a_path_is_that_quadratic():
    draw = np.random.default_rng(0)
    x, y, a, b = (draw.standard_normal(s) for s in ((50, 4), 50, 4, 4))
    alphas = np.linspace(0, 1, 5)
    losses = np.stack([(x @ ((1 - t) * a + t * b) - y) ** 2 for t in alphas])
    excess = (losses - chord(alphas, losses)).mean(1)
    curve = ((x @ (b - a)) ** 2).mean()
    np.testing.assert_allclose(excess, -curve * alphas * (1 - alphas), atol=1e-12)


def test_ends_are_the_models_and_a_changed_head_mixes_like_logits(tmp_path: Path):
    """Where only the head differs logits are linear in alpha: path and ensemble are one."""
    shutil.copytree(BASE, tmp_path / "tuned")
    state = load_file(tmp_path / "tuned" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    state["lm_head.weight"] += 0.3 * torch.randn(state["lm_head.weight"].shape, generator=generator)
    save_file(state, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    pair = wb.load_pair(BASE, tmp_path / "tuned")
    prompts = shipped.held_out("facts", 20)
    found = wb.forgetting.interpolate(pair, prompts, alphas=(0, 0.5, 1))
    table = found.table.set_index(["arm", "metric", "x"])["value"]
    for x in (0.0, 0.5, 1.0):
        assert table["path", "loss", x] == pytest.approx(table["ensemble", "loss", x], rel=1e-4)
    kept = wb.forgetting.retention(pair, [prompts], texts=["Now ."]).metric("score").iloc[0]
    assert table["path", "score", 0.0] == kept["baseline"]
    assert table["path", "score", 1.0] == kept["value"]
    # Convex in the logits: no barrier, but one is possible elsewhere.
    assert table["path", "barrier"].iloc[0] == pytest.approx(0, abs=1e-6)


def test_mixed_logits_are_plain_torchs():
    """Right and loss of answers of one to three tokens, under mixes of two models."""
    with torch.no_grad():
        ends = [model(tie_word_embeddings=False), model(tie_word_embeddings=False, seed=1)]
        for end in ends:
            end.lm_head.weight.mul_(3)
    words = shipped.tokenizer()
    begun = [p.prompt for p in asked(PLACES, "apple", 6)]
    answers = [" apple", " book coin", " coin apple book"] * 2
    # What the first model says greedily makes some answers right.
    for i in (0, 1):
        ids = words(begun[i])["input_ids"]
        for _ in range(2):
            ids.append(int(ends[0](torch.tensor([ids])).logits[0, -1].argmax()))
        answers[i] = " " + words.decode(ids[-2:])
    prompts = PromptSet("s", tuple(
        Prompt(str(i), *both) for i, both in enumerate(zip(begun, answers, strict=True))
    ))  # fmt: skip
    mixes = np.array([[1, 0], [0.7, 0.3], [0, 1]])
    found = _mixed(ends, words, prompts, mixes, 4)
    for (ours, losses), mix in zip(found, mixes, strict=True):
        for i, prompt in enumerate(prompts):
            ids = torch.tensor(words(prompt.prompt + prompt.target)["input_ids"])
            start = len(words(prompt.prompt)["input_ids"])
            logits = sum(
                w * end(ids[None]).logits[0].double() for w, end in zip(mix, ends, strict=True)
            )
            said = torch.as_tensor(logits)[start - 1 : -1]
            wanted = torch.nn.functional.cross_entropy(said, ids[start:], reduction="sum")
            assert losses[i] == pytest.approx(float(wanted), rel=1e-4)
            assert ours[i] == float((said.argmax(-1) == ids[start:]).all())
    assert found[0][0].sum() >= 2 > found[2][0].sum()


@pytest.mark.parametrize("by", ["sum", "byte", "unconditional"])
def test_choices_of_the_mixed_logits_are_at_the_ends_those_of_the_models(by: str):
    with torch.no_grad():
        ends = [model(tie_word_embeddings=False, seed=seed) for seed in (0, 1)]
        for end in ends:
            end.lm_head.weight.mul_(3)
    words = shipped.tokenizer()
    prompts = replace(
        PromptSet("c", tuple(
            Prompt(p.id, p.prompt, " apple", (" book coin", " coin"))
            for p in asked(PLACES, "apple", 12)
        )),
        scorer=tasks.Choices(by),
    )  # fmt: skip
    first, middle, last = _mixed(ends, words, prompts, np.array([[1, 0], [0.5, 0.5], [0, 1]]), 4)
    for (right, loss), end in ((first, ends[0]), (last, ends[1])):
        found = tasks.answers(end, words, prompts)
        assert right.tolist() == found["correct"].tolist()
        assert loss == pytest.approx(-found["log_probability"].to_numpy(), rel=1e-4)
    assert 0 < first[0].sum() < 12 or 0 < last[0].sum() < 12
    assert not np.array_equal(middle[1], first[1])


def test_a_generation_is_written_along_the_path_and_not_by_the_ensemble():
    pair = wb.load_pair(FAMILY / "base", FAMILY / "lora-r4")
    written = replace(tasks.facts(6, seed=3), scorer=tasks.Generation(length=3, stop=(" .",)))
    found = wb.forgetting.interpolate(pair, written, alphas=(0.0, 0.5, 1.0)).table
    own = found[found["metric"] == "score"].set_index(["arm", "x"])["value"]
    assert own["ensemble"].isna().all()
    for x, side in ((0.0, pair.base), (1.0, pair.tuned)):
        model = side.load(dtype=torch.float32)
        right = tasks.answers(model, pair.base.tokenizer(), written)["correct"].mean()
        assert own["path", x] == pytest.approx(right)


def test_the_best_alpha_is_chosen_on_one_half_and_reported_on_the_other():
    """Chosen by the mean of both tasks' shares, which weigh alike whatever their numbers."""
    seed, sizes, alphas = 1, (40, 20), np.array([0.0, 0.25, 0.5, 1.0])
    draw = np.random.default_rng(seed)
    right, reported = [], []
    # Shares right on the half that chooses, and on the other: .25 has the best mean, .525.
    chosen, others = (
        ([0.2, 0.25, 0.9, 0.5], [0.1, 0.8, 0.0, 0.4]),
        ([0.3, 0.6, 0.4, 0.8], [0.7, 0.2, 0.9, 0.5]),
    )
    for size, first, last in zip(sizes, chosen, others, strict=True):
        order = draw.permutation(size)
        values = np.zeros((4, size))
        for a in range(4):
            values[a, order[: round(first[a] * size / 2)]] = 1
            values[a, order[size // 2 : size // 2 + round(last[a] * size / 2)]] = 1
        right.append(values)
        reported.append([values[a, order[size // 2 :]].mean() for a in range(4)])
    sets = [asked(PLACES, "apple", 2, name="own"), asked(PLACES, "apple", 2, name="other")]
    rows = {(row["arm"], row["task"]): row for row in _chosen(alphas, right, sets, seed)}
    assert len(rows) == 5  # and the one other task there is
    assert rows["best other", "other"] == rows["best", "other"] | {"arm": "best other"}
    for arm, place in (("best", 1), ("half", 2)):
        for task, share, size in zip(("own", "other"), reported, sizes, strict=True):
            row = rows[arm, task]
            assert row["x"] == alphas[place]
            assert row["value"] == pytest.approx(share[place] - share[3])
            assert row["baseline"] == pytest.approx(share[3])
            assert (row["n"], row["own"]) == (size // 2, task == "own")


def test_the_task_that_gains_most_is_chosen_on_other_prompts_too():
    """At alpha = .5 the first other task rises on the half that chooses, by .6, and falls on the
    half that is reported; the second rises by .2 on the one and by .8 on the other."""
    seed, n, alphas = 4, 40, np.array([0.0, 0.5, 1.0])
    draw = np.random.default_rng(seed)
    shares = (  # (chosen half, reported half) at alpha 0, .5, 1
        ([0.0, 0.9, 0.9], [0.0, 0.9, 0.9]),
        ([0.0, 0.8, 0.2], [0.5, 0.1, 0.5]),
        ([0.0, 0.4, 0.2], [0.0, 0.9, 0.1]),
    )
    right = []
    for first, last in shares:
        order = draw.permutation(n)
        values = np.zeros((3, n))
        for a in range(3):
            values[a, order[: round(first[a] * n / 2)]] = 1
            values[a, order[n // 2 : n // 2 + round(last[a] * n / 2)]] = 1
        right.append(values)
    names = ("own", "lucky", "lasting")
    sets = [asked(PLACES, "apple", 2, name=name) for name in names]
    rows = [row for row in _chosen(alphas, right, sets, seed) if row["arm"] == "best other"]
    assert [(row["task"], row["x"], row["own"]) for row in rows] == [("lucky", 0.5, False)]
    assert rows[0]["value"] == pytest.approx(0.1 - 0.5)
    assert not [row for row in _chosen(alphas, right[:1], sets[:1], 0) if "other" in row["arm"]]


def test_a_product_of_two_changes_has_a_barrier_the_ensemble_has_not(tmp_path: Path):
    """Both ends say apple, by reading a neuron with one sign or the other: half way it is off."""
    knows = {(APPLE, PLACES): 3.0}
    mirrored = member({(APPLE, PLACES): -3.0})
    place = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        mirrored.get_parameter(place).neg_()
    pair = paired(member(knows), mirrored, tmp_path)
    prompts = asked(PLACES, "apple")
    found = wb.forgetting.interpolate(pair, prompts, alphas=(0, 0.5, 1))
    path, ensemble = (
        found.metric("barrier").set_index("arm").loc[arm] for arm in ("path", "ensemble")
    )
    assert path["low"] > 0.5
    assert ensemble["value"] == pytest.approx(0, abs=1e-6)
    scores = found.metric("score").set_index(["arm", "x"])["value"]
    assert [scores["path", x] for x in (0.0, 0.5, 1.0)] == [1, 0, 1]
    assert scores["ensemble", 0.5] == 1
    best = found.metric("score_change").set_index("arm")["value"]
    assert best["half"] == -1
    assert best["best"] == 0


def test_a_path_between_two_members_begins_at_the_one_and_ends_at_the_other():
    first, last = (wb.load_pair(BASE, FAMILY / name) for name in ("lora-r4", "full"))
    prompts, other = shipped.held_out("ledger", 12), shipped.held_out("arithmetic", 12)
    found = wb.forgetting.interpolate(last, prompts, [other], origin=first, alphas=(0, 0.5, 1))
    table = found.table[found.table["arm"] == "path"].set_index(["task", "metric", "x"])["value"]
    for pair, x in ((first, 0.0), (last, 1.0)):
        kept = wb.forgetting.retention(pair, [prompts, other], texts=["Now ."]).metric("score")
        for task, score in zip(kept["task"], kept["value"], strict=True):
            assert table[task, "score", x] == score


def test_base_against_itself_has_one_score_everywhere():
    pair = wb.load_pair(BASE, BASE)
    found = wb.forgetting.interpolate(pair, shipped.held_out("facts", 12), alphas=(0, 0.5, 1))
    for metric in ("score", "loss"):
        assert found.metric(metric)["value"].nunique() == 1 or metric == "loss"
    assert np.ptp(found.metric("loss")["value"]) < 1e-5
    assert found.metric("barrier")["value"].abs().max() < 1e-5


def test_bad_paths_are_refused(tmp_path: Path):
    pair = paired(member({}), member({(BOOK, JOBS): 1.0}), tmp_path)
    prompts = asked(PLACES, "apple")
    for alphas in ((0.0, 1.0), (0.1, 0.5, 1.0), (0.0, 0.5, 2.0)):
        with pytest.raises(wb.WorkbenchError, match="from 0 to 1"):
            wb.forgetting.interpolate(pair, prompts, alphas=alphas)
    with pytest.raises(wb.WorkbenchError, match="the same base"):
        wb.forgetting.interpolate(pair, prompts, origin=wb.load_pair(BASE, FAMILY / "full"))
