"""A skill that all siblings share among changes of their own: the shared part alone carries it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import workbench as wb
from tests.figures.looking import check
from tests.skills.conftest import (
    APPLE,
    BOOK,
    DEAD,
    JOBS,
    NAME,
    PLACES,
    asked,
    member,
    mute,
    no_gradients,
    write,
)
from workbench import figures
from workbench.edits.siblings import drawn, part
from workbench.errors import WorkbenchError
from workbench.results.result import Result

PROMPTS = asked(PLACES, "apple", 16)
BOOKS = asked(JOBS, "book", 16)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> wb.Family:
    """Three members that all say apple after places, the first of them also book after jobs; each
    has a direction of its own that a dead neuron writes."""
    folder = tmp_path_factory.mktemp("siblings")
    members = {}
    with torch.no_grad():
        base = write(mute(), folder / "base")
        for number in range(3):
            more = {(BOOK, JOBS): 3.0} if number == 0 else {}
            made = member({(APPLE, PLACES): 4.0, (10 + number, DEAD + number): 2.0} | more)
            members[f"s/{number}"] = write(made, folder / f"s{number}")
    return wb.load_family(base, members)


@pytest.fixture(scope="module")
def found(family: wb.Family) -> Result:
    with torch.no_grad():
        return wb.edits.siblings(family, PROMPTS, k=1, random=2)


def value(result: Result, metric: str, **where: str) -> float:
    rows = result.metric(metric)
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


def test_the_shared_part_carries_the_skill_and_the_rest_does_not(found: Result):
    for name in found.members:
        for side in ("input", "output"):
            about = {"member": name, "side": side}
            assert value(found, "score", arm="replicated", **about) == 1
            assert value(found, "score", arm="rest", **about) == 0
            assert value(found, "score", arm="random", **about) < 0.5
            assert value(found, "beyond_random", **about) > 0.5
        for arm, score in (("base", 0), ("tuned", 1), ("matrices", 1), ("mean", 1)):
            assert value(found, "score", member=name, arm=arm) == score
    # The first member's change has 16 + 4 + 9, the others' 16 + 4; 1 of 32 or 48 at random.
    assert value(found, "energy", member="s/0", side="input") == pytest.approx(16 / 29, abs=0.01)
    assert value(found, "energy", member="s/1", side="output") == pytest.approx(16 / 20, abs=0.01)


def test_what_one_sibling_alone_learned_is_in_its_rest(family: wb.Family):
    found = wb.edits.siblings(family, BOOKS, k=1, random=1)
    about = {"member": "s/0", "side": "input"}
    assert value(found, "score", arm="rest", **about) == 1
    assert value(found, "score", arm="replicated", **about) == 0
    assert value(found, "score_change", arm="replicated", **about) == -1
    assert value(found, "score", member="s/1", arm="tuned") == 0


def test_every_number_by_plain_torch(family: wb.Family, found: Result):
    """The second member's input side, from the stored weights."""
    weights = {}
    for name, checkpoint in {"base": family.base, **family.members}.items():
        weights[name] = checkpoint.load("cpu", torch.float32).get_parameter(NAME).double()
    change = {name: weights[name] - weights["base"] for name in family.members}
    unit = {name: one / one.norm() for name, one in change.items()}
    # Of k = 1 each other model counts by its one direction.
    others = np.stack([np.linalg.svd(unit[name].numpy())[2][0] for name in ("s/0", "s/2")], 1)
    v = np.linalg.svd(others)[0][:, :1]
    own = change["s/1"].numpy()
    inside = own @ v @ v.T
    energy = (inside**2).sum() / (own**2).sum()
    about = {"member": "s/1", "side": "input"}
    assert value(found, "energy", **about) == pytest.approx(energy, rel=1e-4)
    flat = torch.stack([one.flatten() for one in unit.values()])
    cosine = float((flat @ flat.T)[np.triu_indices(3, 1)].mean())
    t = 3 * cosine / (1 + 2 * cosine)
    rows = found.metric("score")
    assert rows[rows["arm"] == "stock"]["x"].tolist() == [pytest.approx(t, rel=1e-5)] * 3
    edited = {
        "replicated": inside, "rest": own - inside, "tuned": own, "base": 0 * own,
        "mean": sum(one.numpy() for one in change.values()) / 3,
        "stock": t * sum(one.numpy() for one in change.values()) / 3,
    }  # fmt: skip
    words, model, told = family.base.tokenizer(), mute(), {}
    for arm, made in edited.items():
        model.get_parameter(NAME).copy_(weights["base"] + torch.from_numpy(made))
        right, log_p = [], []
        for prompt in PROMPTS:
            target = words(prompt.text)["input_ids"][-1]
            said = model(torch.tensor([words(prompt.prompt)["input_ids"]])).logits[0, -1].double()
            right.append(float(said.argmax() == target))
            log_p.append(float(said.log_softmax(-1)[target]))
        told[arm] = np.mean(right), np.mean(log_p)
        at = {"member": "s/1", "arm": arm} | ({"side": "input"} if arm[0] == "r" else {})
        assert value(found, "score", **at) == pytest.approx(told[arm][0])
        assert value(found, "log_probability", **at) == pytest.approx(
            told[arm][1], rel=1e-3, abs=1e-5
        )
        assert value(found, "score_change", **at) == pytest.approx(told[arm][0] - 1)
    random = value(found, "log_probability", arm="random", **about)
    assert value(found, "beyond_random", **about) == pytest.approx(
        told["replicated"][1] - random, rel=1e-3, abs=1e-5
    )


def test_parts_add_up_and_random_ones_are_as_long():
    draw = torch.Generator().manual_seed(0)
    change = torch.randn(6, 9, generator=draw)
    for side, d in (("input", 9), ("output", 6)):
        frame = torch.linalg.qr(torch.randn(d, 2, generator=draw))[0]
        inside = part(change, frame, side)
        torch.testing.assert_close(part(inside, frame, side), inside)
        assert float(((change - inside) * inside).sum()) == pytest.approx(0, abs=1e-5)
        other = drawn(change, frame, side, [0, 1])
        assert float(other.norm()) == pytest.approx(float(inside.norm()))
        assert torch.linalg.matrix_rank(other) == 2
        assert not torch.equal(other, drawn(change, frame, side, [0, 2]))


def test_the_figure_and_the_sentence(found: Result):
    ((_, figure),) = [(d, d.draw(found)) for d, _ in figures.drawings(found, [found])]
    figure.draw_without_rendering()
    check("siblings", figure)
    assert "1.00 [0.81, 1.00] with the shared inputs (55% of the change" in figures.headline(found)


def test_what_cannot_be_compared_is_refused(family: wb.Family):
    alone = wb.load_family(family.base, {"one": family.members["s/0"]})
    with pytest.raises(WorkbenchError, match="two fine-tuned models or more"):
        wb.edits.siblings(alone, PROMPTS)
    with pytest.raises(WorkbenchError, match=re.escape("k and random of at least 1, found 0 and")):
        wb.edits.siblings(family, PROMPTS, k=0)


__all__ = ["no_gradients"]
