"""Every kind of edit ends at the two models, and does between them what its formula says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.calls import write_pair
from tests.conftest import nudged, saved, tiny
from workbench.edits import KINDS, Settings, edits
from workbench.errors import WorkbenchError
from workbench.lab import planted

TEXTS = ("the red box is here", "a coin and an apple", "who is there")
TOLD = Settings(texts=TEXTS)


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> wb.CheckpointPair:
    """A pair that reads words."""
    return write_pair(tmp_path_factory.mktemp("worded"))


@pytest.mark.parametrize("kind", [name for name, known in KINDS.items() if known.whole is not None])
def test_one_strength_is_the_fine_tuned_model(kind: str, worded: wb.CheckpointPair):
    whole = KINDS[kind].whole
    assert whole is not None
    made = edits(worded, kind, TOLD)(whole)
    for delta in worded.deltas("all"):
        edited = made.tensor(delta.site)
        assert torch.equal(delta.base if edited is None else edited, delta.tuned)


@pytest.mark.parametrize("kind", ["alpha", "movement", "random", "harmful", "1-bit", "tiers"])
def test_strength_0_is_the_base_in_the_blocks(kind: str, worded: wb.CheckpointPair):
    made = edits(worded, kind, TOLD)(0.0)
    for delta in worded.deltas():
        edited = made.tensor(delta.site)
        assert edited is None or torch.equal(edited, delta.base)


def test_layers_by_hand(base: Path, tuned: Path):
    """s = .5 of layers 0 to L - 1: .5 in the first, 1 in the last, and .5 outside the blocks."""
    pair = wb.load_pair(base, tuned)
    made, last = edits(pair, "layers")(0.5), max(s.layer or 0 for s in pair.sites("all"))
    assert last
    for delta in pair.deltas("all"):
        layer = delta.site.layer
        factor = 0.5 if layer is None else 0.5 + 0.5 * layer / last
        wanted = delta.base.float() + factor * delta.change
        torch.testing.assert_close(made.tensor(delta.site), wanted)


def test_a_planted_intruder_is_scaled_and_nothing_else(tmp_path: Path):
    """W + 3 s_1 u v^T has one intruder, u v^T but for its mix with W: at strength 0 it is gone."""
    base = saved(tiny("llama"), tmp_path / "base")
    matrix = "model.layers.1.mlp.up_proj.weight"
    made = planted.spike(base, strength=3.0, q=16, matrix=matrix)
    pair = wb.load_pair(base, made.save(tmp_path / "spiked", base))
    at = edits(pair, "intruders", Settings(k=3))
    for delta in pair.deltas():
        edited = at(0.5).tensor(delta.site)
        if delta.site.name != matrix:
            assert edited is None or torch.equal(edited, delta.tuned)
            continue
        u, s, v = torch.linalg.svd(delta.tuned)
        wanted = delta.tuned - 0.5 * s[0] * torch.outer(u[:, 0], v[0])
        torch.testing.assert_close(edited, wanted, rtol=0, atol=1e-5 * float(s[0]))
        assert torch.linalg.matrix_norm(at(0.0).tensor(delta.site), 2) < 1.1 * s[1]


def test_movement_keeps_the_entries_that_moved_most(base: Path, tuned: Path):
    pair = wb.load_pair(base, tuned)
    changes = torch.cat(
        [d.change.flatten() for d in pair.deltas("all") if d.site.layer is not None]
    )
    edge = changes.abs().sort(descending=True).values[round(0.3 * len(changes)) - 1]
    made = edits(pair, "movement")(0.3)
    kept = edits(pair, "random")(0.3)
    shares = []
    for delta in pair.deltas("all"):
        if delta.site.layer is None:
            continue
        edited = made.tensor(delta.site)
        wanted = torch.where(delta.change.abs() >= edge, delta.tuned, delta.base)
        assert torch.equal(delta.base if edited is None else edited, wanted)
        noise = kept.tensor(delta.site)
        shares.append((noise != delta.base).float().flatten())
    assert float(torch.cat(shares).mean()) == pytest.approx(0.3, abs=0.002)


def slopes(pair: wb.CheckpointPair) -> dict[str, torch.Tensor]:
    """The gradient of the texts' loss a token at the fine-tuned model, by autograd over each text
    alone: neither batches nor padding."""
    model: Any = pair.tuned.load(dtype=torch.float32).eval()
    words, total = pair.base.tokenizer(), 0
    for text in TEXTS:
        ids = torch.tensor([words(text)["input_ids"]])
        logits = model(input_ids=ids).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").backward()
        total += ids.shape[1] - 1
    return {name: p.grad / total for name, p in model.named_parameters() if p.grad is not None}


def test_the_entries_that_harm_the_texts_most_are_set_back(worded: wb.CheckpointPair):
    """g . delta by hand: 2% of all entries of the blocks, those of the largest, and no others."""
    found = slopes(worded)
    blocks = [d for d in worded.deltas("all") if d.site.layer is not None]
    harm = torch.cat([(found[d.site.name] * d.change).flatten() for d in blocks])
    edge = harm.sort(descending=True).values[round(0.02 * len(harm)) - 1]
    assert edge > 0
    made, differ = edits(worded, "harmful", TOLD)(0.98), 0
    for delta in blocks:
        bad = found[delta.site.name] * delta.change >= edge
        edited = made.tensor(delta.site)
        wanted = torch.where(bad, delta.base, delta.tuned)
        differ += int(((delta.base if edited is None else edited) != wanted).sum())
    assert differ <= 2e-3 * 0.02 * len(harm)  # entries at the edge, where sums are rounded


def test_directions_that_harm_the_texts_are_scaled(worded: wb.CheckpointPair):
    """dW = sum of s u v^T: those with s u^T G v > 0 at strength .25, the others whole."""
    found = slopes(worded)
    made = edits(worded, "reweighted", TOLD)(0.25)
    for delta in worded.deltas():
        u, s, v = torch.linalg.svd(delta.change, full_matrices=False)
        harms = s * ((u.T @ found[delta.site.name]) * v).sum(1) > 0
        assert 0 < harms.sum() < len(harms)
        wanted = delta.base + (u * torch.where(harms, 0.25 * s, s)) @ v
        edited = made.tensor(delta.site)
        torch.testing.assert_close(edited, wanted, rtol=0, atol=1e-4 * float(s[0]))


@pytest.mark.parametrize("kind", ["harmful", "reweighted"])
def test_what_reads_texts_is_refused_without(kind: str, worded: wb.CheckpointPair):
    with pytest.raises(WorkbenchError, match="give text like"):
        edits(worded, kind)


def test_rank_and_bits_are_the_projections_of_the_change(tmp_path: Path):
    base = saved(tiny("llama"), tmp_path / "base")
    pair = wb.load_pair(base, saved(nudged(tiny("llama")), tmp_path / "tuned"))
    delta = next(pair.deltas())
    u, s, v = torch.linalg.svd(delta.change, full_matrices=False)
    wanted = delta.base + (u[:, :2] * s[:2]) @ v[:2]
    torch.testing.assert_close(edits(pair, "rank")(2).tensor(delta.site), wanted)
    signs = delta.base + delta.change.sign() * delta.change.abs().mean()
    torch.testing.assert_close(edits(pair, "1-bit")(1.0).tensor(delta.site), signs)


@pytest.mark.parametrize(
    ("kind", "strength"),
    [("alpha", -0.1), ("alpha", math.nan), ("movement", 1.1), ("rank", 0), ("rank", 1.5)],
)
def test_a_strength_that_means_nothing_is_refused(kind: str, strength: float, base, tuned):
    with pytest.raises(WorkbenchError, match=f"the strength of {kind}"):
        edits(wb.load_pair(base, tuned), kind)(strength)


def test_an_unknown_kind_is_refused(base: Path, tuned: Path):
    with pytest.raises(WorkbenchError, match="kind of edit among alpha"):
        edits(wb.load_pair(base, tuned), "surgery")
