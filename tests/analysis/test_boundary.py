"""What is no pair, no device and no prompts ends in one sentence; a path to prompts is read."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.calls import Asked, write_pair
from tests.terminal import workbench
from workbench.loaders.devices import entry
from workbench.study.catalogue import ANALYSES
from workbench.tasks import PromptSet

OWN = Asked(12)
DECORATED = [one for one in ANALYSES if "pair" in inspect.signature(one.function).parameters]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> wb.CheckpointPair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def family(pair) -> wb.Family:
    return wb.Family(pair.base, {"one": pair.tuned, "two": pair.tuned})


@pytest.mark.parametrize("one", DECORATED, ids=lambda one: one.key)
def test_a_family_is_no_pair_and_a_gpu_needs_one(one, family, pair):
    others = {
        name: OWN.prompts
        for name, known in inspect.signature(one.function).parameters.items()
        if known.default is known.empty and name != "pair"
    }
    with pytest.raises(wb.WorkbenchError, match=r"found a family of 2; give family\['one'\]"):
        one.function(family, **others)
    with pytest.raises(wb.WorkbenchError, match="Expected a base with one fine-tuned model for"):
        one.function("a folder", **others)
    if "device" in inspect.signature(one.function).parameters:
        with pytest.raises(wb.WorkbenchError, match="Expected a device such as"):
            one.function(pair, **others, device="gpu")
    if "prompts" in others:
        with pytest.raises(wb.WorkbenchError, match=r"found the text 'some words'"):
            one.function(pair, **others | {"prompts": "some words"})


def test_prompts_may_be_given_by_their_file(pair, tmp_path: Path):
    file = OWN.prompts.save(tmp_path / "boxes.jsonl")
    other = OWN.others.save(tmp_path / "facts.jsonl")
    ours = wb.forgetting.interpolate(pair, file, [str(other)], alphas=[0.0, 0.5, 1.0])
    theirs = wb.forgetting.interpolate(pair, OWN.prompts, [OWN.others], alphas=[0.0, 0.5, 1.0])
    assert ours.fingerprint == theirs.fingerprint


def test_one_set_stands_where_several_may(pair, tmp_path: Path):
    file = OWN.prompts.save(tmp_path / "boxes.jsonl")
    asked = {"texts": ["one text", "another"]}
    several, one, path = (
        wb.forgetting.retention(pair, given, **asked)
        for given in ([OWN.prompts], OWN.prompts, str(file))
    )
    assert several.fingerprint == one.fingerprint == path.fingerprint


def test_a_key_of_the_catalogue_is_its_function(family):
    ours = wb.over(family, "spectral.delta_spectrum")
    assert ours.fingerprint == wb.over(family, wb.spectral.delta_spectrum).fingerprint
    with pytest.raises(wb.WorkbenchError, match=r"did you mean spectral\.intruders\?"):
        wb.over(family, "spectral.intruder")
    with pytest.raises(wb.WorkbenchError, match="Expected a family of fine-tuned models"):
        wb.over(family["one"], "spectral.intruders")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "cuda"])
def test_a_device_is_on_this_machine(name: str, pair):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there.get(name):
        assert entry(name).type == name
        return
    for ask in (lambda: entry(name), lambda: pair.base.load(name)):
        with pytest.raises(wb.WorkbenchError, match="Expected a device"):
            ask()
    done = workbench("tuco", "no", "such", "--prompts", "files", "--device", name)
    assert done.returncode == 2
    assert "Expected a device" in done.stderr


def test_a_set_of_prompts_is_a_sequence_that_says_what_it_is():
    prompts = OWN.prompts
    assert prompts[0] is prompts.prompts[0]
    assert prompts[-1] is prompts.prompts[-1]
    assert prompts[2:4].prompts == prompts.prompts[2:4]
    assert isinstance(prompts[:2], PromptSet)
    assert len(repr(prompts)) < 150
    assert "12 prompts" in repr(prompts)


def test_a_json_list_is_a_set_of_prompts(tmp_path: Path):
    file = tmp_path / "some.json"
    file.write_text('[{"prompt": "a", "target": " b"}, {"id": "x", "prompt": "c", "target": " d"}]')
    assert [p.id for p in PromptSet.load(file)] == ["1", "x"]
    file.write_text('{"prompt": "a", "target": " b"}')
    with pytest.raises(wb.WorkbenchError, match="expected a list of objects, found dict"):
        PromptSet.load(file)
