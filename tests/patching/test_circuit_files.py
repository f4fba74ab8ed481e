"""Circuits as files: read back as they were written, kept where they say, refused by name."""

from __future__ import annotations

import json

import pytest
import torch

import workbench as wb
from tests.patching.conftest import MOVER, READER, boxes, copier, model, paired, said
from workbench.cli.signatures import signatures
from workbench.cli.values import form
from workbench.errors import WorkbenchError
from workbench.patching.circuit_files import FORMAT, load_circuits, placed, save_circuits


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with torch.no_grad():
        return paired(copier(), copier(), tmp_path_factory.mktemp("pair"))


OPTIONS = {"random": 0, "minimal": False, "depth": 1, "sides": ("base",)}


def test_a_found_circuit_is_judged_again_from_its_file(pair, tmp_path):
    """Found, saved, loaded as the command line does and judged: the same faithfulness."""
    prompts = {"corrupted": said(16, turn=1)}
    found = wb.patching.circuit(pair, said(16), **prompts, **OPTIONS)
    own = wb.patching.circuits_of(found)
    file = save_circuits(own, tmp_path / "own.json")
    (asked,) = (one for one in signatures("patching") if one.name == "circuit")
    option = form(next(one for one in asked.parameters if one.name == "circuits"))
    assert option is not None
    loaded = option.read(file)
    assert loaded == {
        name: {group: list(heads) for group, heads in groups.items()}
        for name, groups in own.items()
    }
    assert loaded["base"]["value fetcher"] == [MOVER]
    again = wb.patching.circuit(
        pair, said(16), circuits={"theirs": loaded["base"]}, **prompts, **OPTIONS
    )
    share = again.metric("faithfulness:logit_difference").set_index("circuit")["value"]
    assert share["theirs"] == share["base"]


def test_a_head_is_kept_where_the_file_says(pair):
    """The mover is needed at the last token alone, the reader at the first ones: at the last it
    does nothing."""
    mover, reader = (f"{layer}.{head}" for layer, head in (MOVER, READER))
    circuits = {
        "right": {"both": [f"{mover}@-1", reader]},
        "wrong": {"both": [f"{mover}@-1", f"{reader}@-1"]},
        "first": {"both": [f"{mover}@0", reader]},
    }
    found = wb.patching.circuit(
        pair, said(16), corrupted=said(16, turn=1), circuits=circuits, **OPTIONS
    )
    share = found.metric("faithfulness:logit_difference").set_index("circuit")["value"]
    assert share["right"] == pytest.approx(1, abs=1e-5)
    assert share["wrong"] < 0.9
    assert share["first"] < 0.1


def test_groups_with_several_places_are_parted():
    groups, places = placed({"a": ["1.2@-1", "0.3@verb", (2, 1)], "b": ["4.5@S2"], "c": []})
    assert groups == {"a": [(2, 1)], "a @-1": [(1, 2)], "a @verb": [(0, 3)], "b": [(4, 5)], "c": []}
    assert places == {"a @-1": -1, "a @verb": "verb", "b": "S2"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"circuits": {}}, "Expected circuits in .*own.json"),
        ({"format": FORMAT, "circuits": []}, "Expected circuits in .*own.json"),
        ({"format": FORMAT, "circuits": {"a": {"b": "1.2"}}}, "to map groups to lists of heads"),
        ({"format": FORMAT, "circuits": {"a": {"b": ["one"]}}}, "Expected a head as LAYER.HEAD"),
        ({"format": FORMAT, "circuits": {"a": {"b": [[1, 2, 3]]}}}, "Expected a head as LAYER"),
    ],
)
def test_what_is_no_circuit_is_refused(tmp_path, content, says):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    with pytest.raises(WorkbenchError, match=says):
        load_circuits(file)


def test_its_own_file_is_replaced(tmp_path):
    file = save_circuits({"a": {"b": ["0.1@-1"]}}, tmp_path / "own.json")
    save_circuits({"a": {"b": [(3, 4)]}}, file)
    assert load_circuits(file) == {"a": {"b": [(3, 4)]}}
    file.write_text(json.dumps({"mine": 1}))
    with pytest.raises(WorkbenchError, match=r"own\.json"):
        save_circuits({"a": {"b": [(0, 1)]}}, file)
    assert json.loads(file.read_text()) == {"mine": 1}


@pytest.mark.parametrize("name", ["base", "tuned", "a/b"])
def test_a_circuit_is_not_taken_for_a_side(name, tmp_path):
    pair = paired(model(), model(), tmp_path)
    with pytest.raises(WorkbenchError, match="of other names than base and tuned"):
        wb.patching.circuit(pair, boxes(8), circuits={name: {"g": [(0, 1)]}}, random=1)
