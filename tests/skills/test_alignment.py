"""The change against the gradient: one step of descent, exact nulls, and numbers by plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model, paired
from workbench.skills.alignment import Agreement, Product, shared
from workbench.tasks import PromptSet
from workbench.tasks.batching import rows

TASK = boxes(6, count=None)
OTHERS = PromptSet("general", wb.tasks.facts(4, seed=1, split="test").prompts)


def loss(made, words, prompts: PromptSet) -> torch.Tensor:
    """Mean over prompts of -log p(answer), prompt by prompt, in plain torch."""
    total = torch.zeros(())
    for row in rows(words, prompts, answers=True):
        logits = made(torch.tensor([row.fed])).logits[0]
        start = len(row.ids) - 1
        answer = torch.tensor(row.answer)
        total = total + F.cross_entropy(
            logits[start : start + len(answer)], answer, reduction="sum"
        )
    return total / len(prompts)


def gradients(made, words, prompts: PromptSet) -> dict[str, torch.Tensor]:
    made.zero_grad()
    made.requires_grad_(True)
    with torch.enable_grad():
        loss(made, words, prompts).backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def stepped(tmp_path, rate: float = 0.01):
    """A pair whose change is one step of plain gradient descent on TASK."""
    base, tuned = model(), model()
    words = paired(base, nudged(model(), seed=1), tmp_path / "words").base.tokenizer()
    found = gradients(tuned, words, TASK)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            parameter -= rate * found[name]
    return paired(base, tuned, tmp_path)


def of_all(found: wb.Result, metric: str) -> dict:
    own = found.metric(metric)
    (row,) = own[own["component"].isna()].to_dict("records")
    return row


def test_one_step_of_descent_is_aligned_and_one_of_ascent_opposed(tmp_path):
    down = wb.skills.alignment(stepped(tmp_path / "down"), TASK)
    up = wb.skills.alignment(stepped(tmp_path / "up", -0.01), TASK)
    for found, value, sign in ((down, 1.0, 1.0), (up, -1.0, 0.0)):
        each = found.metric("cosine")
        assert each["value"].to_numpy() == pytest.approx(value, abs=2e-3)
        assert len(each) == 21 + 1
        assert found.metric("sign_agreement")["value"].to_numpy() == pytest.approx(sign, abs=2e-3)
        largest = found.metric("overlap").query("arm == 'gradient'")
        assert largest["value"].min() > 0.98


def test_every_number_by_plain_torch(tmp_path):
    base, tuned = model(), nudged(model(), seed=1)
    pair = paired(base, tuned, tmp_path)
    words = pair.base.tokenizer()
    found = wb.skills.alignment(pair, TASK, others=[OTHERS], share=0.1, batch_size=4)
    exact = gradients(base, words, TASK)
    after = dict(tuned.named_parameters())
    table = found.table.set_index(["layer", "component", "metric", "arm"]).sort_index()
    inner, sizes, agreed, total = 0.0, np.zeros(2), 0.0, 0.0
    for site in pair.sites():
        change = (after[site.name] - dict(base.named_parameters())[site.name]).detach().double()
        gradient = exact[site.name].double()
        inner += float(-(change * gradient).sum())
        sizes += [float(change.square().sum()), float(gradient.square().sum())]
        agreed += float(change.abs()[change.sign() == -gradient.sign()].sum())
        total += float(change.abs().sum())
        own = table.loc[(site.layer, site.component)]
        cosine = float(-(change * gradient).sum() / change.norm() / gradient.norm())
        assert own.loc["cosine"]["value"].iloc[0] == pytest.approx(cosine, abs=1e-5)
        k = round(0.1 * change.numel())
        largest = set(change.abs().flatten().topk(k).indices.tolist())
        theirs = set(gradient.abs().flatten().topk(k).indices.tolist())
        value = own.loc["overlap", "gradient"]["value"]
        assert float(value) == pytest.approx(len(largest & theirs) / k, abs=1.5 / k)
    assert of_all(found, "cosine")["value"] == pytest.approx(
        inner / np.sqrt(sizes.prod()), abs=1e-5
    )
    assert of_all(found, "sign_agreement")["value"] == pytest.approx(agreed / total, abs=1e-4)
    for layer in range(3):
        seen = []
        for prompt in OTHERS:
            kept = []
            hook = base.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
                lambda _, args, kept=kept: (args[0].retain_grad(), kept.append(args[0]))[0]
            )
            with torch.enable_grad():
                loss(base, words, PromptSet("one", (prompt,))).backward()
            hook.remove()
            seen.append((kept[0] * kept[0].grad).sum((0, 1)).abs().detach().numpy())
        mlp = [base.model.layers[layer].mlp, tuned.model.layers[layer].mlp]
        first, second = ({n: p.detach() for n, p in one.named_parameters()} for one in mlp)
        moved = {n: (second[n] - p).square() for n, p in first.items()}
        far = moved["down_proj.weight"].sum(0)
        far = far + moved["gate_proj.weight"].sum(1) + moved["up_proj.weight"].sum(1)
        rho = spearmanr(np.mean(seen, 0), far.sqrt().numpy()).statistic
        (row,) = found.metric("relevance").query("layer == @layer").to_dict("records")
        assert row["value"] == pytest.approx(rho, abs=1e-3)
        assert (row["task"], row["n"]) == ("general", 48)


def test_the_null_of_a_permuted_change_is_exact():
    """Mean and variance over all 720 orders of six entries."""
    from itertools import permutations

    a, b = torch.tensor([3.0, -1, 2, 0.5, 0, 1]), torch.tensor([1.0, 1, -1, 0, 1, -2])
    found = Product.of(a, b)
    drawn = [float((a[list(order)] * b).sum()) for order in permutations(range(6))]
    assert found.value == pytest.approx(float(a @ b))
    assert found.mean == pytest.approx(np.mean(drawn), abs=1e-6)
    assert found.variance == pytest.approx(np.var(drawn))


def test_agreement_by_hand():
    """Changes 3, -1, 2 against -G = 1, 1, -1: cos = (3 - 1 - 2) / ..., |D| that agrees 3 of 6."""
    found = Agreement.of(torch.tensor([3.0, -1, 2]), torch.tensor([-1.0, -1, 1]))
    cosine, signs = found.rows()
    assert cosine["value"] == 0
    assert signs["value"] == pytest.approx(0.5)
    both = found.joined(Agreement.of(torch.tensor([2.0]), torch.tensor([-2.0])))
    cosine, signs = both.rows()
    assert cosine["value"] == pytest.approx(4 / np.sqrt(18 * 7))
    assert signs["value"] == pytest.approx(5 / 8)


def test_unrelated_changes_lie_inside_the_null_and_share_no_largest_entries(tmp_path):
    """Noise against a gradient: 95 in 100 matrices, give or take."""
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    table = wb.skills.alignment(pair, TASK).table.dropna(subset=["component"])
    inside = (table["value"] >= table["null_low"]) & (table["value"] <= table["null_high"])
    assert inside[table["metric"] != "overlap"].mean() > 0.85
    draw = torch.Generator().manual_seed(0)
    noise = [torch.rand(100, 100, generator=draw) for _ in range(2)]
    row = shared(*noise, 0.05)
    assert row["null_low"] <= row["value"] <= row["null_high"]
    assert shared(noise[0], noise[0], 0.05)["value"] == 1


def test_what_cannot_be_asked_is_refused(tmp_path):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    with pytest.raises(wb.WorkbenchError, match="share of entries between 0 and 1"):
        wb.skills.alignment(pair, TASK, share=0.0)
    same = paired(model(), model(), tmp_path / "same")
    with pytest.raises(wb.WorkbenchError, match="has no changed matrix"):
        wb.skills.alignment(same, TASK)
