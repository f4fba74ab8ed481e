"""Shares chosen one by one: a matrix that only hurts is cut, one that the task needs is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.skills.conftest import (
    APPLE,
    JOBS,
    NAME,
    PLACES,
    WRONG,
    asked,
    mute,
    no_gradients,
    paired,
)
from tests.skills.conftest import member as changed
from workbench.loaders.names import ParameterSite, locate
from workbench.skills.truncation import Truncation, dealt, greedy, low_rank

SITES = [*locate({f"model.layers.{i}.mlp.down_proj.weight": None for i in range(3)}).values()]


def test_each_share_is_the_best_beside_those_before_it():
    """A loss with a known best share of each matrix, where the last one changes the first's."""
    seen: list[dict[ParameterSite, float]] = []

    def loss(shares: dict[ParameterSite, float]) -> float:
        seen.append(dict(shares))
        last = shares.get(SITES[2], 1.0)
        first = shares.get(SITES[0], 1.0)
        return abs(last - 0.5) + 0.1 * abs(first - (0.25 if last == 0.5 else 1.0))

    found = greedy(loss, SITES, (0.25, 0.5))
    assert found == {SITES[2]: 0.5, SITES[1]: 1.0, SITES[0]: 0.25}  # ties keep the matrix whole
    assert len(seen) == 9
    assert [*seen[0]] == [SITES[2]]
    other = dealt(found, 3)
    assert sorted(other.values()) == sorted(found.values())
    assert other.keys() == found.keys()
    assert any(dealt(found, seed) != found for seed in range(4))


def test_low_rank_is_numpys():
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    for share, k in ((0.5, 3), (0.01, 1), (1.0, 6)):
        wanted = (u[:, :k] * s[:k]) @ vt[:k]
        np.testing.assert_allclose(low_rank(matrix, share).numpy(), wanted, atol=1e-5)


def hurt() -> torch.nn.Module:
    """Says apple after places by the largest singular value of layer 1's down_proj, less sure by a
    smaller one that also writes the wrong word: half the singular values are better."""
    made = changed({(APPLE, PLACES): 3.0})
    made.get_parameter(NAME)[WRONG, JOBS] = 0.0
    noise = torch.randn(made.get_parameter(NAME).shape, generator=torch.Generator().manual_seed(0))
    made.get_parameter(NAME).add_(0.02 * noise)
    return made


def test_a_matrix_that_only_hurts_is_truncated(tmp_path: Path):
    """Only the cut of one matrix changes answers; its shares are tried by hand."""
    pair = paired(mute(), hurt(), tmp_path)
    task = asked(PLACES, "apple", 16)
    others = [asked(JOBS, "book", 8)]
    known = {"ranks": (1,), "sparsities": (0.5,), "random": 1, "whole": (0.05, 0.5)}
    found = wb.skills.compression(pair, task, others=others, greedy_matrices=30, **known)
    own = found.metric("share")
    truncation = Truncation(pair.held())
    choose = wb.tasks.PromptSet("c", wb.skills.scoring.split(task, (1, 1), 0)[0].prompts)
    losses = {}
    model, words = hurt(), pair.base.tokenizer()
    (site,) = [s for s in pair.sites() if s.name == NAME]
    for share in (1.0, 0.5, 0.05):
        model.get_parameter(NAME).copy_(low_rank(hurt().get_parameter(NAME).detach(), share))
        losses[share] = -wb.tasks.answers(model, words, choose)["log_probability"].mean()
    at = own[(own["layer"] == 1) & (own["component"] == "mlp.down_proj")]
    assert at["value"].item() == min(losses, key=lambda share: losses[share])
    assert at["baseline"].item() == pytest.approx(own["value"].mean())
    rows = found.table[found.table["arm"].isin(["greedy", "tuned, reported half"])]
    log_p = rows[(rows["metric"] == "log_probability") & rows["own"]].set_index("arm")
    assert (log_p["n"] == 8).all()  # the other half
    assert {"greedy", "dealt at random", "tuned, reported half"} < set(found.metric("auroc")["arm"])
    assert truncation.edit({site: 1.0}).tensors().keys() == wb.models.edit(pair).tensors().keys()


def test_shares_to_choose_from_are_asked_for(tmp_path: Path):
    pair = paired(mute(), hurt(), tmp_path)
    with pytest.raises(wb.WorkbenchError, match="shares below 1 to choose from for 4 matrices"):
        wb.skills.compression(pair, asked(PLACES, "apple", 16), greedy_matrices=4)


__all__ = ["no_gradients"]
