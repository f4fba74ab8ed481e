"""Distributed alignment search: a planted subspace is found, kept or moved; numbers by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import copier, model, paired, said
from workbench.lab.compiled import pairs as compiled
from workbench.numerics import chance
from workbench.patching.interchange import interchanged, overlap
from workbench.rotations import haar
from workbench.stats import halves
from workbench.tasks import desiderata
from workbench.tasks.batching import encode
from workbench.tasks.desiderata import Counterfactual, Counterfactuals

LAST = 2  # the layer behind which the copied object stands in 40 to 47
QUICK: dict[str, Any] = {"k": 8, "layers": [LAST], "steps": 40, "lr": 0.05, "random": 2}


def quick(more: dict[str, Any]) -> dict[str, Any]:
    return QUICK | more


def one(result: wb.results.Result, metric: str, side: str, arm: str = "learned") -> float:
    rows = result.metric(metric)
    rows = rows[(rows["side"] == side) & (rows["arm"] == arm)]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


def objects(n: int = 32) -> Counterfactuals:
    """The base prompt names one object, the source another, which is then to be said."""
    turned = zip(said(n), said(n, turn=3), strict=True)
    made = (Counterfactual(a, b, f" {b.prompt.split()[1]}") for a, b in turned)
    return Counterfactuals("objects", "object", tuple(made))


def copying(place: int) -> Any:
    """The copier with a flat head, whose object stands in `place` and the seven behind it."""
    made = copier()
    projection, head = made.model.layers[LAST].self_attn.o_proj.weight, made.lm_head.weight
    for weight, axis in ((projection, 0), (head, 1)):
        part = weight.narrow(axis, 40, 8).clone()
        weight.narrow(axis, 40, 8).zero_()
        weight.narrow(axis, place, 8).copy_(part)
    head.mul_(0.15)
    return made


# Of the 8 planted dimensions of 64, what 97.5% of random subspaces of 8 hold at most.
BY_CHANCE = 8 * chance(64, 8, 8)[2]


def pair_at(place: int, folder: Path) -> wb.CheckpointPair:
    return paired(copying(40), copying(place), folder)


def test_a_variable_that_stayed_is_found_and_used_in_both(tmp_path):
    """The base against itself, exactly: what is trained in one does the same in the other, and the
    two overlap as two trainings in the base do."""
    found = wb.patching.das(pair_at(40, tmp_path), objects(), **QUICK)
    for side in ("base", "tuned", "base->tuned", "tuned->base"):
        assert one(found, "score", side) == 1
        assert one(found, "score", side, "beyond random") == 1
        assert one(found, "score", side, "shuffled") < 0.7
    for side in ("base", "tuned"):
        assert one(found, "score", side, "all") == 1
        assert one(found, "score", side, "none") == 0
        assert one(found, "score", side, "random") == 0
    assert one(found, "score", "base->tuned") == one(found, "score", "base")
    for metric in ("score", "log_probability"):
        assert one(found, metric, "tuned->base") == one(found, metric, "tuned")
    assert one(found, "overlap", "base and tuned") == one(found, "overlap", "base, twice")
    row = found.metric("overlap").iloc[0]
    assert row["value"] > 2 * row["null_high"]
    assert row["baseline"] == pytest.approx(8 / 64)
    frame = found.tensors[f"base/{LAST}"]
    np.testing.assert_allclose(frame.T @ frame, np.eye(8), atol=1e-5)
    assert np.square(frame[40:48]).sum() > 2 * BY_CHANCE


def test_a_variable_that_moved_is_found_in_each_and_not_used_in_the_other(tmp_path):
    found = wb.patching.das(pair_at(52, tmp_path), objects(), **QUICK)
    for side in ("base", "tuned"):
        assert one(found, "score", side) == 1
    for side in ("base->tuned", "tuned->base"):
        assert one(found, "score", side) < 0.3
    both, twice = (one(found, "overlap", side) for side in ("base and tuned", "base, twice"))
    assert both < twice / 2
    assert np.square(found.tensors[f"tuned/{LAST}"][52:60]).sum() > 2 * BY_CHANCE


def test_a_compiled_variable_is_kept(tmp_path):
    """Written by construction: the induction head became stronger, and writes the same."""
    known = compiled(tmp_path, ["induction-strengthened"])["induction-strengthened"]
    assert known.corrupted is not None
    both = zip(known.prompts, known.corrupted, strict=True)
    given = tuple(Counterfactual(a, b, a.foils[0]) for a, b in both)
    pair = wb.load_pair(known.base, known.tuned)
    changed = max(layer for (layer,) in known.places["layer"] if isinstance(layer, int))
    found = wb.patching.das(
        pair, Counterfactuals("induction", "answer", given), **quick({"layers": [changed]})
    )
    scores = found.metric("score").set_index(["side", "arm"])["value"]
    assert scores["tuned", "learned"] > 0.8
    assert scores["base->tuned", "learned"] > scores["tuned", "random"] + 0.3
    assert scores["tuned", "all"] == 1


def test_scores_by_plain_torch(tmp_path):
    base, tuned = model(), nudged(model(), seed=1)
    pair, given, layer = paired(base, tuned, tmp_path), desiderata("object value", 12, count=4), 1
    found = wb.patching.das(pair, given, k=3, layers=[layer], steps=3, random=2, batch_size=4)
    words, (pick, report) = pair.base.tokenizer(), halves(12, 0)
    frames = {side: torch.from_numpy(found.tensors[f"{side}/1"]) for side in ("base", "tuned")}
    sides = {"base": base, "tuned": tuned}

    def hidden(made: Any, prompt: Any) -> torch.Tensor:
        own = encode(words, prompt)
        ids = torch.tensor([own.ids[: own.start]])
        with torch.no_grad():
            return made(ids, output_hidden_states=True).hidden_states[layer + 1][0, -1]

    def told(made: Any, frame: torch.Tensor, which: Any = report) -> tuple[float, float]:
        right, log_p = [], []
        for i in which:
            one_pair = given.pairs[i]
            own = encode(words, given.wanted[int(i)])
            taken = hidden(made, one_pair.source)

            def change(_m: Any, _a: Any, out: torch.Tensor, taken: Any = taken) -> torch.Tensor:
                out = out.clone()
                out[0, -1] += frame @ (frame.T @ (taken - out[0, -1]))
                return out

            hook = made.model.layers[layer].register_forward_hook(change)
            with torch.no_grad():
                logits = made(torch.tensor([own.ids[: own.start]])).logits[0, -1]
            hook.remove()
            right.append(float(logits.argmax() == own.ids[own.start]))
            log_p.append(float(logits.log_softmax(-1)[own.ids[own.start]]))
        return float(np.mean(right)), float(np.mean(log_p))

    for trained, frame in frames.items():
        for used, made in sides.items():
            side = used if trained == used else f"{trained}->{used}"
            score, log_p = told(made, frame)
            assert one(found, "score", side) == score
            assert one(found, "log_probability", side) == pytest.approx(log_p, abs=1e-4)
    assert one(found, "training_score", "base") == told(base, frames["base"], pick)[0]
    drawn = [haar(32, 3, torch.Generator().manual_seed(2 + i)) for i in range(2)]
    null = np.mean([told(base, own)[1] for own in drawn])
    assert one(found, "log_probability", "base", "random") == pytest.approx(null, abs=1e-4)
    gain = one(found, "log_probability", "base") - null
    assert one(found, "log_probability", "base", "beyond random") == pytest.approx(gain, abs=1e-4)
    value = float((frames["base"].T @ frames["tuned"]).square().sum()) / 3
    assert one(found, "overlap", "base and tuned") == pytest.approx(value, abs=1e-5)


def test_an_interchange_by_hand():
    own, source = torch.tensor([[1.0, 2, 3]]), torch.tensor([[5.0, 7, 9]])
    first = torch.eye(3)[:, :1]
    assert interchanged(own, source, first).tolist() == [[5, 2, 3]]
    assert torch.equal(interchanged(own, source, torch.eye(3)), source)
    assert torch.equal(interchanged(own, own, first), own)
    turned = haar(3, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(interchanged(own, source, turned), source)
    plane, other = torch.eye(4)[:, :2], torch.eye(4)[:, 1:3]
    assert overlap(plane, other) == pytest.approx(0.5)
    mixed = plane @ haar(2, 2, torch.Generator().manual_seed(1))
    assert overlap(plane, mixed) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"k": 0}, "k to be 1"), ({"k": 64}, "below the 64 dimensions"), ({"steps": 0}, "steps to be"),
     ({"layers": [9]}, "no layer 9"), ({"layers": []}, "no layer given")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(tmp_path, wrong, told):
    with pytest.raises(wb.WorkbenchError, match=told):
        wb.patching.das(pair_at(40, tmp_path), objects(8), **quick(wrong))


def test_what_has_no_counterfactual_answer_is_refused(tmp_path):
    pair = pair_at(40, tmp_path)
    with pytest.raises(wb.WorkbenchError, match="at least 8 pairs"):
        wb.patching.das(pair, objects(6), **QUICK)
    prompts: Any = said(8)
    with pytest.raises(wb.WorkbenchError, match=r"pairs of prompts from tasks\.desiderata"):
        wb.patching.das(pair, prompts, **QUICK)
