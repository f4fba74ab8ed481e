"""Directions of a change: first order against the real edit, planted words, numbers by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model
from tests.skills.conftest import (
    APPLE,
    PLACES,
    asked,
    mute,
    no_gradients,  # noqa: F401
    paired,
    planted,
)
from workbench.spectral.directions import nearest, sensitivities
from workbench.stats import halves
from workbench.tasks.batching import rows


def test_sensitivity_is_minus_the_derivative_by_each_directions_scale():
    """d/dlambda_i f(W + sum (lambda_i - 1) sigma_i u_i v_i^T), by autograd, of any f."""
    noise = torch.Generator().manual_seed(0)
    change, weight = (torch.randn(6, 5, generator=noise) for _ in range(2))
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    with torch.enable_grad():
        scales = torch.ones(5, requires_grad=True)
        whole = weight + (left * (values * (scales - 1))) @ right
        value = (whole.sin() ** 3).sum()
        (slopes,) = torch.autograd.grad(value, scales)
        leaf = weight.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad((leaf.sin() ** 3).sum(), leaf)
    torch.testing.assert_close(sensitivities(left, values, right, gradient), -slopes)


def test_the_null_of_random_directions_is_exact():
    draw = np.random.default_rng(0)
    gradient = draw.standard_normal((8, 6)) * np.arange(1, 7)
    drawn = []
    for _ in range(20000):
        u, v = draw.standard_normal(8), draw.standard_normal(6)
        drawn.append(-2.0 * (u / np.linalg.norm(u)) @ gradient @ (v / np.linalg.norm(v)))
    assert np.std(drawn) == pytest.approx(2.0 * np.linalg.norm(gradient) / np.sqrt(48), rel=0.03)
    assert np.mean(drawn) == pytest.approx(0, abs=0.1)


def test_the_nearest_words_by_hand():
    words = torch.eye(4)
    assert nearest(torch.tensor([0.0, -3, 4, 0]), words, 2) == [
        (2, pytest.approx(0.8)), (1, pytest.approx(-0.6)),
    ]  # fmt: skip


def test_a_planted_direction_is_found_named_and_matters(tmp_path):
    """One entry of down_proj makes "apple" of prompts that end with "in": without it the answer is
    wrong on every prompt, without a random direction it stays."""
    pair, prompts = planted(tmp_path, {(APPLE, PLACES): 3.0}), asked(PLACES, "apple", 16)
    found = wb.spectral.directions(pair, prompts, k=2, most=1, words=1)
    (sigma,) = found.metric("sigma").to_dict("records")
    assert (sigma["layer"], sigma["component"]) == (1, "mlp.down_proj")
    assert sigma["value"] == pytest.approx(3)
    (word,) = found.metric("word").to_dict("records")
    assert (word["side"], word["token"].strip()) == ("writes", "apple")
    assert abs(word["value"]) == pytest.approx(1, abs=1e-4)
    change = found.metric("score_change").set_index("arm")["value"]
    assert change["direction"] == -1
    assert change["random"] == 0
    assert "neighbour" not in change  # the change has one direction
    sensitivity = found.metric("sensitivity").iloc[0]
    assert sensitivity["value"] > sensitivity["null_high"]


def test_every_number_by_plain_torch(tmp_path):
    """sensitivity, and what taking a direction out does, against edits of the weights by hand."""
    base, tuned = model(), nudged(model(), seed=1)
    pair, prompts = paired(base, tuned, tmp_path), boxes(8, count=None)
    words = pair.base.tokenizer()
    found = wb.spectral.directions(pair, prompts, k=1, most=1, words=2)
    choose, report = (prompts.at(places) for places in halves(8, 0))

    def nats(made, some) -> torch.Tensor:
        each = []
        for row in rows(words, some, answers=True):
            logits = made(torch.tensor([row.fed])).logits[0, len(row.ids) - 1 :]
            each.append(F.cross_entropy(logits, torch.tensor(row.answer), reduction="sum"))
        return torch.stack(each)

    tuned.requires_grad_(True)
    with torch.enable_grad():
        nats(tuned, choose).mean().backward()
    before = dict(base.named_parameters())
    table = found.table.set_index(["metric", "layer", "component"]).sort_index()
    most, best = 0.0, None
    for name, after in tuned.named_parameters():
        if "layers" not in name or after.ndim < 2:
            continue
        layer, component = int(name.split(".")[2]), name.split(".", 3)[3].removesuffix(".weight")
        u, s, vt = torch.linalg.svd((after - before[name]).detach().double())
        slope = float(-s[0] * u[:, 0] @ after.grad.double() @ vt[0])
        for metric, exact in (("sensitivity", slope), ("sigma", float(s[0]))):
            own = np.ravel(table.loc[(metric, layer, component), "value"])
            assert own == pytest.approx([exact], rel=1e-3, abs=1e-6)
        if component == "mlp.down_proj":
            head = tuned.get_output_embeddings().weight.detach().double()
            cosines = (head @ u[:, 0] / head.norm(dim=1)).abs().sort(descending=True).values[:2]
            own = table.loc[("word", layer, component)]["value"].abs()
            assert own.to_numpy() == pytest.approx(cosines.numpy(), rel=1e-3)
        if abs(slope) > most:
            most, best = abs(slope), (name, layer, component, s[0] * torch.outer(u[:, 0], vt[0]))
    name, layer, component, part = best
    full = nats(tuned, report).detach()
    right = [int(wb.tasks.answers(tuned, words, report)["correct"].sum())]
    with torch.no_grad():
        tuned.get_parameter(name).sub_(part.float())
    right.append(int(wb.tasks.answers(tuned, words, report)["correct"].sum()))
    rise = float((nats(tuned, report).detach() - full).mean())
    rows_of = found.table[found.table["arm"] == "direction"].set_index("metric")
    assert (rows_of["layer"] == layer).all()
    assert (rows_of["component"] == component).all()
    assert rows_of.loc["loss_change", "value"] == pytest.approx(rise, abs=1e-4)
    assert rows_of.loc["score_change", "value"] == pytest.approx((right[1] - right[0]) / 4)


def test_what_has_no_directions_is_refused(tmp_path):
    prompts = asked(PLACES, "apple", 6)
    with pytest.raises(wb.WorkbenchError, match="has no changed matrix"):
        wb.spectral.directions(paired(mute(), mute(), tmp_path), prompts)
    with pytest.raises(wb.WorkbenchError, match="at least 4 prompts"):
        wb.spectral.directions(planted(tmp_path / "p", {(APPLE, PLACES): 3.0}), prompts.at([0, 1]))
