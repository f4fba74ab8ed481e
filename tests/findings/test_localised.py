"""What the top intruders take back beyond a shrink, on planted losses worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.figures.synthetic import result
from workbench.findings import CLAIMS
from workbench.findings.readings import Reading

LORA: dict[str, Any] = {"r4": {"kind": "lora", "rank": 4, "fingerprint": "r4"}}
FULL: dict[str, Any] = {"r4": {"kind": "full", "fingerprint": "r4"}}
TEXTS, LOSS, FORGOTTEN = {"texts": 64, "fingerprint": "t"}, 4.0, 0.5


def row(metric: str, value: float, half: float, **more: Any) -> dict[str, Any]:
    found = {"member": "r4", "metric": metric, "value": value, "low": value - half}
    return found | {"high": value + half, "n": 64, "baseline": LOSS} | more


def scale(losses: dict[str, float], scores: dict[str, float], members=LORA, x=0.7, half=1.0) -> Any:
    """Changes in %, by arm."""
    rows = [row("loss_change", v, half, arm=a, x=x, task="pretraining") for a, v in losses.items()]
    rows += [row("score_change", v, 3.0, arm=a, x=x, task="boxes") for a, v in scores.items()]
    rows += [row("loss_change", 77.0, half, arm=a, x=1.0, task="pretraining") for a in losses]
    return result("spectral.scale", rows, members, texts=TEXTS)


def retention(value: float = FORGOTTEN, half: float = 0.1, texts=TEXTS, members=LORA) -> Any:
    rows = [
        row("loss_change", value, half, task="pretraining"),
        row("loss_change", 9.0, 0.1, task="other texts"),
    ]
    return result("forgetting.retention", rows, members, texts=texts)


def read(*results: Any) -> list[Reading]:
    (claim,) = [claim for claim in CLAIMS if "localised" in claim.name]
    return list(claim.read(results))


EQUAL = {"top": -2.0, "shrink": -3.0}


@pytest.mark.parametrize(("top", "said"), [(-6.0, True), (-5.8, None), (-3.2, None), (-3.0, False)])
def test_the_share_is_beyond_the_shrinks(top: float, said: bool | None):
    """Of 4 nats 1% is 0.04, and of 0.5 forgotten 0.08; intervals add in squares."""
    (found,) = read(scale({"top": top, "shrink": -4.5, "neighbour": -90.0}, EQUAL), retention())
    assert found.value == pytest.approx(0.08 * (-4.5 - top))
    assert found.high - found.value == pytest.approx(0.08 * math.hypot(1, 1))
    assert found.value - found.low == pytest.approx(0.08 * math.hypot(1, 1))
    assert found.control == pytest.approx(0.08 * 4.5)
    assert found.holds is said
    assert (found.member, found.at, found.n) == ("r4", "scale 0.7", 64)


@pytest.mark.parametrize(
    ("top", "shrink", "same"), [(0.0, 0.7, True), (0.0, 0.8, False), (0.0, -4.5, True)]
)
def test_a_score_that_may_be_lower_by_five_in_a_hundred_decides_nothing(
    top: float, shrink: float, same: bool
):
    """Half-widths of 3 give one of 4.24."""
    made = scale({"top": -9.0, "shrink": -4.0}, {"top": top, "shrink": shrink})
    (found,) = read(made, retention())
    assert found.holds is (True if same else None)


def test_the_scale_is_the_nearest_that_both_arms_have():
    rows = [scale({"top": -9.0, "shrink": -1.0}, EQUAL, x=x).table for x in (0.3, 0.6, 0.75)]
    lone = scale({"top": -9.0}, {"top": 0.0}, x=0.7).table
    made = result(
        "spectral.scale",
        [one for own in (*rows, lone) for one in own.to_dict("records")],
        *(LORA,),
        texts=TEXTS,
    )
    assert [one.at for one in read(made, retention())] == ["scale 0.75"]
    assert not read(scale({"top": -9.0, "shrink": -1.0}, EQUAL, x=0.3), retention())


def test_where_there_is_no_share_there_is_no_reading():
    made = scale({"top": -9.0, "shrink": -1.0}, EQUAL)
    assert not read(made)
    assert not read(made, retention(half=0.6))  # nothing that is known to be forgotten
    assert not read(made, retention(texts={"texts": 64, "fingerprint": "others"}))
    other = {"r4": LORA["r4"] | {"fingerprint": "another checkpoint"}}
    assert not read(made, retention(members=other))
    assert not read(scale({"top": -9.0}, {"top": 0.0}), retention())
    assert not read(scale({"top": -9.0, "shrink": -1.0}, {"top": 0.0}), retention())
    no_score = scale({"top": -9.0, "shrink": -1.0}, EQUAL | {"shrink": math.nan})
    assert not read(no_score, retention())
    of_full = scale({"top": -9.0, "shrink": -1.0}, EQUAL, members=FULL)
    assert not read(of_full, retention(members=FULL))
    assert read(made, retention())
