"""Sums and TIES of several changes are those of their papers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.conftest import nudged, saved, tiny
from workbench.edits import edits, summed, ties
from workbench.edits.merging import elected
from workbench.errors import WorkbenchError


def test_signs_are_elected_by_hand():
    """3 and -1 elect +: mean of 3; 1 and 2: 1.5; -4 and 1: -4; 0 and 5: 5; 2 and -2: nobody."""
    changes = torch.tensor([[3.0, 1.0, -4.0, 0.0, 2.0], [-1.0, 2.0, 1.0, 5.0, -2.0]])
    assert elected(changes).tolist() == [3.0, 1.5, -4.0, 5.0, 0.0]


@pytest.fixture
def pairs(tmp_path: Path) -> list[wb.CheckpointPair]:
    base = saved(tiny("llama"), tmp_path / "base")
    return [
        wb.load_pair(base, saved(nudged(tiny("llama"), seed=seed), tmp_path / f"t{seed}"))
        for seed in (1, 2, 3)
    ]


def test_a_mean_and_a_sum(pairs: list[wb.CheckpointPair]):
    mean, added = summed(pairs), summed(pairs, (1.0, -1.0, 0.5))
    for site in pairs[0].sites("all"):
        base = pairs[0].delta(site).base
        changes = torch.stack([pair.delta(site).change for pair in pairs])
        torch.testing.assert_close(mean.tensor(site), base + changes.mean(0))
        by_hand = base + changes[0] - changes[1] + 0.5 * changes[2]
        torch.testing.assert_close(added.tensor(site), by_hand)


def test_ties_by_plain_torch(pairs: list[wb.CheckpointPair]):
    """Trimmed over all parameters at once, as the paper's algorithm does with whole vectors."""
    sites = pairs[0].sites("all")
    vectors = torch.stack(
        [torch.cat([pair.delta(site).change.flatten() for site in sites]) for pair in pairs]
    )
    kept = round(0.2 * vectors.shape[1])
    edge = vectors.abs().sort(descending=True).values[:, kept - 1 : kept]
    trimmed = torch.where(vectors.abs() >= edge, vectors, 0.0)
    sign = trimmed.sum(0).sign()
    agree = (trimmed.sign() == sign) & (trimmed != 0)
    merged = torch.where(agree, trimmed, 0.0).sum(0) / agree.sum(0).clamp(min=1)
    made, start = ties(pairs, density=0.2, scale=0.7), 0
    for site in sites:
        base = pairs[0].delta(site).base
        own = merged[start : start + base.numel()].view(base.shape)
        start += base.numel()
        edited = made.tensor(site)
        torch.testing.assert_close(base if edited is None else edited, base + 0.7 * own)


def test_one_model_alone_and_untrimmed_is_itself(pairs: list[wb.CheckpointPair]):
    made, whole = ties(pairs[:1], density=1.0), edits(pairs[0], "alpha")(1.0)
    for site in pairs[0].sites("all"):
        torch.testing.assert_close(made.tensor(site), whole.tensor(site))


def test_what_cannot_be_merged_is_refused(pairs: list[wb.CheckpointPair], tmp_path: Path):
    other = saved(tiny("llama", seed=5), tmp_path / "other")
    foreign = wb.load_pair(other, saved(nudged(tiny("llama", seed=5)), tmp_path / "foreign"))
    for call, said in (
        (lambda: summed([]), "found none"),
        (lambda: summed(pairs, (1.0,)), "3 weights"),
        (lambda: ties([pairs[0], foreign]), "one base"),
        (lambda: ties(pairs, density=0.0), "density in"),
    ):
        with pytest.raises(WorkbenchError, match=said):
            call()
