"""The plan of a sweep is what it then costs, and a long one asks."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

import workbench as wb
from tests.patching.conftest import boxes, model, paired
from workbench.errors import WorkbenchError
from workbench.models import Site
from workbench.patching.sweep import Side, sweep
from workbench.patching.sweep_plan import Plan, counted, plan
from workbench.tasks.batching import rows

MODULE = import_module("workbench.patching.sweep_plan")


@pytest.fixture
def pair(tmp_path):
    return paired(model(), model(seed=1), tmp_path)


@pytest.mark.parametrize("position", [None, -1, "query box", 4])
def test_planned_passes_are_those_that_are_run(pair, position, monkeypatch):
    """Patch by patch, of prompts of one length, where nothing else bounds the first token."""
    from workbench.patching.patches import Patch

    words, prompts = pair.base.tokenizer(), boxes(4, order="object first")
    given, base = rows(words, prompts, answers=True), pair.base.load()
    patches = [
        Patch((Site("resid_pre", layer, position=position),), {"component": "resid_pre"})
        for layer in range(3)
    ]
    told: list[Plan] = []
    monkeypatch.setattr(Plan, "require", lambda self, *_: told.append(self))
    side = Side(base, given)
    made = sweep(side, Side(pair.tuned.load(), given), patches, words, batch_size=1)
    assert told[0].patches == 3
    assert told[0].forwards == pytest.approx(made.forwards, rel=1e-6)
    # The check of a run against itself is no part of the count.
    assert told[0].bytes > 0
    assert told[0].minutes > 0


def test_what_is_kept_grows_with_what_is_patched(pair):
    words, base = pair.base.tokenizer(), pair.base.load()
    given = rows(words, boxes(4), answers=True)

    def size(kinds: list, batch_size: int = 2) -> float:
        return plan(base, given, [(0, None)], kinds, words, batch_size, "cpu").bytes

    tokens = max(len(row.fed) for row in given)
    widths = {"z": 32, "q": 32, "k": 16, "v": 16, "resid_mid": 32, "mlp_hidden": 48,
              "pattern": 4 * tokens}  # fmt: skip
    for kind, width in widths.items():
        assert size([Site(kind, 0)]) - size([]) == 4 * 2 * tokens * width, kind
    # Of two runs every layer's stream, keys and values; of a patched row one block's work, keys and
    # values of all layers, and logits with their copies.
    kept = 2 * tokens * 3 * (32 + 2 * 16)
    row = tokens * (4 * 32 + 3 * 48 + 4 * tokens + 2 * 3 * 16) + 4 * len(words)
    assert size([]) == 4 * 2 * (kept + row)
    assert size([], 4) == 2 * size([], 2)
    known = (len(given), 7.0, [], words, 2, "cpu")
    back = counted(base, given, *known, gradients=True)
    assert back.bytes == 4 * 2 * (kept + row + tokens * 2 * (4 * 32 + 3 * 48 + 4 * tokens))
    assert (back.patches, back.prompts, back.forwards) == (4, 4, 7.0)


def test_the_cost_of_path_patching_is_planned(pair, monkeypatch):
    told: list[Plan] = []
    monkeypatch.setattr(Plan, "require", lambda self, *_: told.append(self))
    prompts = boxes(4, order="object first")
    for options in ({}, {"receivers": [(2, 0)], "part": "q"}):
        made = wb.patching.path(pair, prompts, sides=["base"], batch_size=1, **options)
        cost = float(re.findall(r"cost (\S+) plain", " ".join(made.provenance.notes))[0])
        assert told[-1].forwards == pytest.approx(cost, rel=0.05)  # told with one digit


CALLS = {
    "activation": {}, "cross_model": {}, "restore": {}, "path": {}, "attribution": {},
    "circuit": {"random": 2}, "mask": {"epochs": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_long_and_large_sweeps_ask(pair, name, monkeypatch, capsys):
    options = CALLS[name]
    size = 8 if name in ("circuit", "mask") else 4
    given = wb.tasks.desiderata("object value", size) if name == "mask" else boxes(size)

    def call(**more):
        return getattr(wb.patching, name)(pair, given, **options, **more)

    call()
    said = capsys.readouterr().err
    assert re.search(
        rf"\d+ patches of {size} prompts: \d+ plain forward passes over them, up to", said
    )
    monkeypatch.setattr(MODULE, "LONG", 0.0)
    with pytest.raises(WorkbenchError, match=r"over an hour; give fewer .* large=True"):
        call()
    one = call(large=True)
    monkeypatch.setattr(MODULE, "LONG", 60.0)
    assert one.table.drop(columns="member").equals(call().table.drop(columns="member"))
    monkeypatch.setattr(MODULE, "free", lambda device: 1)
    with pytest.raises(WorkbenchError, match=r"more than the 0\.00 GiB free"):
        call()
