"""Sums and TIES of several changes are those of their papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import workbench as wb
from tests.conftest import nudged, saved, tiny
from workbench.edits import edits, save, summed, ties
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


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_mergekit_merges_alike(pairs: list[wb.CheckpointPair], density: float, tmp_path: Path):
    """Its own run of TIES and of a weighted sum, against the checkpoints that are written here."""
    how = {"density": density, "scale": 0.7}
    # It takes an entry that no model moved or that nobody elects for +, which changes nothing.
    save(ties(pairs, **how, apart=True), tmp_path / "ties")
    told = {"normalize": True, "lambda": 0.7}
    theirs = by_mergekit(pairs, "ties", tmp_path / "theirs", (1, 1, 1), told, density=density)
    torch.testing.assert_close(weights(tmp_path / "ties"), theirs, rtol=0, atol=1e-6)
    if density == 1:  # where nothing is trimmed, its trimming by matrix is the paper's
        save(ties(pairs, **how), tmp_path / "whole")
        torch.testing.assert_close(weights(tmp_path / "whole"), theirs, rtol=0, atol=1e-6)


def test_mergekit_adds_alike(pairs: list[wb.CheckpointPair], tmp_path: Path):
    save(summed(pairs, (1.0, -1.0, 0.5)), tmp_path / "sum")
    told = {"normalize": False}
    theirs = by_mergekit(pairs, "task_arithmetic", tmp_path / "theirs", (1.0, -1.0, 0.5), told)
    torch.testing.assert_close(weights(tmp_path / "sum"), theirs, rtol=0, atol=1e-6)


def by_mergekit(
    pairs: list[wb.CheckpointPair],
    method: str,
    out: Path,
    each: tuple[float, ...],
    told: dict[str, Any],
    **more: float,
) -> dict[str, torch.Tensor]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    models = [
        {"model": str(pair.tuned.reference), "parameters": {"weight": weight} | more}
        for pair, weight in zip(pairs, each, strict=True)
    ]
    about = {
        "merge_method": method, "base_model": str(pairs[0].base.reference), "dtype": "float32",
        "parameters": told, "models": models,
    }  # fmt: skip
    options = MergeOptions(copy_tokenizer=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(about), str(out), options)
    return weights(out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


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
