"""Figures of the scoreboard that stand in docstrings are those of its committed table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from workbench.scoreboard import ours, outside

TRUTH = Path(__file__).parents[2] / "benchmarks" / "results" / "truth.json"


@cache
def truth() -> dict[str, Any]:
    return json.loads(TRUTH.read_text())


def row(method: str, metric: str, place: str | None = None) -> dict[str, Any]:
    (found,) = (
        one
        for one in truth()["rows"]
        if (one["method"], one["metric"], one.get("place")) == (method, metric, place)
    )
    return found


def of(method: str, metric: str) -> list[str]:
    """Of so many pairs, so many."""
    found = row(method, metric)
    return [f"{found['n']:.0f}", f"{found['value'] * found['n']:.0f}"]


def auroc(method: str, place: str, pair: str | None = None) -> str:
    found = (
        row(method, "auroc", place)["value"]
        if pair is None
        else truth()["auroc"][f"{method}, {place}"][pair]
    )
    return f"{found:.2f}".removeprefix("0")


# Module -> what it says, with a group for each figure, and these figures in the table.
SAID: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "skills.blocks": (
        r"of (\d+) compiled pairs that learned nothing (\d+) have one whose change moves",
        lambda: of("skills.blocks", "false_positive"),
    ),
    "behaviour.tokens": (
        r"of (\d+) compiled pairs that learned nothing (\d+) change them",
        lambda: of("behaviour.tokens", "false_positive"),
    ),
    "forgetting.verdict": (
        r"of (\d+) compiled pairs, .*? it is right on (\d+)",
        lambda: of("forgetting.verdict", "verdict_right"),
    ),
    "forgetting.sharpness": (
        r"of (\d+) compiled pairs that learned nothing (\d+) have one for certain",
        lambda: of("forgetting.sharpness", "false_positive"),
    ),
    "patching.dictionary": (
        r"its null in (\d+) of (\d+) compiled pairs that learned nothing",
        lambda: [*reversed(of("patching.dictionary", "false_positive"))],
    ),
    "patching.difference": (
        r"anything: (\d+) of (\d+) compiled pairs that learned nothing",
        lambda: [*reversed(of("patching.difference", "false_positive"))],
    ),
    "patching.das": (
        r"does \(AUROC (\S+) against (\S+); `make truth`",
        lambda: [auroc("patching.das", "layer"), auroc("norm of the change", "layer")],
    ),
    "patching.attribution": (
        r"AUROC (\S+) on the pair that sorts",
        lambda: [auroc("patching.attribution", "edge", "sorting-reversed")],
    ),
    "patching.restore": (
        r"recover something in only (\d+) of (\d+), .*?AUROC (\S+) against (\S+);",
        lambda: [
            *reversed(of("patching.restore", "found")),
            auroc("patching.restore", "matrix"),
            auroc("norm of the change", "matrix"),
        ],
    ),
    "spectral.intruders": (
        r"new in (\d+) of (\d+) that learned something and in (\d+) of (\d+) that .*?"
        r"AUROC (\S+) against (\S+);",
        lambda: [
            *reversed(of("spectral.intruders", "found")),
            *reversed(of("spectral.intruders", "false_positive")),
            auroc("norm of the change", "matrix"),
            auroc("spectral.intruders", "matrix"),
        ],
    ),
    "spectral.similarity": (
        r"AUROC (\S+) where three facts were rewritten",
        lambda: [auroc("spectral.similarity", "matrix", "facts-rank-3")],
    ),
    "patching.patterns": (
        r"AUROC (\S+) on the compiled pair where a head was made stronger",
        lambda: [auroc("patching.patterns", "head", "induction-strengthened")],
    ),
    "patching.lens": (
        r"stands out \(AUROC ([.\d]+);",
        lambda: [auroc("patching.lens", "layer", "entities-repurposed")],
    ),
    "spectral.delta_spectrum": (
        r"\(AUROC (\S+) on the compiled pair with a decoy;",
        lambda: [auroc("spectral.delta_spectrum", "matrix", "copy-decoy")],
    ),
}


@pytest.mark.parametrize("key", [*SAID])
def test_a_docstring_says_what_the_table_says(key: str):
    pattern, expected = SAID[key]
    text = " ".join((import_module(f"workbench.{key}").__doc__ or "").split())
    found = re.search(pattern, text)
    assert found, f"{key} no longer says {pattern}"
    assert [*found.groups()] == expected()


def test_every_docstring_that_cites_the_table_is_looked_at():
    root = Path(__file__).parents[2] / "workbench"
    citing = {
        f"{path.parent.name}.{path.stem}"
        for path in root.rglob("*.py")
        if path.parent.name not in ("scoreboard", "cli", "truth")
        and "`make truth`" in path.read_text()
    }
    assert citing == {*SAID}


TRUTHS = {"auroc", "found", "verdict_right"}
PHANTOMS = {"beyond_phantom", "false_positive"}


@pytest.mark.parametrize("method", [one.name for one in (*ours.METHODS, *outside.METHODS)])
def test_the_committed_table_holds_every_method_against_a_truth_and_a_phantom(method: str):
    told = {one["metric"] for one in truth()["rows"] if one["method"] == method}
    assert told & TRUTHS
    assert told & PHANTOMS
