"""`workbench edit save` writes what it was told, or what half of the prompts chose, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from tests.skills.conftest import APPLE, PLACES, WRONG, asked, member, mute, write
from workbench.cli import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with torch.no_grad():
        write(mute(), tmp_path / "base")
        write(member({(APPLE, PLACES): 40.0}, 0.3), tmp_path / "tuned")
    asked(PLACES, "apple", 150).save(tmp_path / "task.jsonl")
    texts = [" ".join(["coin"] * (4 + n)) for n in range(24)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return tmp_path


def run(folder: Path, *arguments: object):
    given = ["edit", "save", folder / "base", folder / "tuned", "--out", folder / "out", *arguments]
    return CliRunner().invoke(app, [str(one) for one in given])


def test_a_strength_is_written_with_what_was_done(folder: Path):
    done = run(folder, "--kind", "alpha", "--strength", "0.25")
    assert done.exit_code == 0, (done.output, done.exception)
    made = wb.load_pair(folder / "base", folder / "out")
    own = wb.load_pair(folder / "base", folder / "tuned")
    for one, other in zip(made.deltas(), own.deltas(), strict=True):
        torch.testing.assert_close(one.change, 0.25 * other.change, rtol=1e-5, atol=1e-6)
    about = json.loads((folder / "out" / "edit.json").read_text())
    assert about["done"] == {"kind": "alpha", "strength": 0.25}


def test_blocks_are_kept_or_dropped_at_a_strength(folder: Path):
    done = run(folder, "--strength", "0.5", "--drop", "self_attn")
    assert done.exit_code == 0, (done.output, done.exception)
    made = wb.load_pair(folder / "base", folder / "out")
    changed = {delta.site.component for delta in made.deltas("all") if delta.changed}
    assert changed
    assert not any(name.startswith("self_attn") for name in changed)
    about = json.loads((folder / "out" / "edit.json").read_text())
    assert about["done"]["drop"] == ["self_attn"]
    done = run(folder, "--prompts", folder / "task.jsonl", "--keep", "0")
    assert "give --strength" in str(done.exception)


def test_a_graft_is_written(folder: Path):
    pair = wb.load_pair(folder / "base", folder / "tuned")
    site = next(delta.site for delta in pair.deltas() if delta.changed)
    graft = wb.skills.Graft("one", {site.name: np.array([0, 3])}, {site.name: 9})
    graft.save(folder / "graft.safetensors")
    done = run(folder, "--graft", folder / "graft.safetensors", "--form", "weights")
    assert done.exit_code == 0, (done.output, done.exception)
    own = wb.load_pair(folder / "base", folder / "out")
    torch.testing.assert_close(own.delta(site).tuned, graft.edit(pair).tensor(site))
    assert [delta.site for delta in own.deltas("all") if delta.changed] in ([], [site])
    done = run(folder, "--graft", folder / "graft.safetensors", "--kind", "rank")
    assert "give one of the two" in str(done.exception)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ([], lambda one, other: (one + other) / 2),
        (["--method", "sum", "--weight", "b=-0.5"], lambda one, other: one - other / 2),
    ],
)
def test_models_are_merged(folder: Path, given, made):
    with torch.no_grad():
        write(member({(WRONG, PLACES): 9.0}, 0.1), folder / "other")
    asked_for = ["edit", "merge", folder / "base", "--member", f"a={folder / 'tuned'}",
                 "--member", f"b={folder / 'other'}", "--out", folder / "out", *given]  # fmt: skip
    done = CliRunner().invoke(app, [str(one) for one in asked_for])
    assert done.exit_code == 0, (done.output, done.exception)
    pairs = [wb.load_pair(folder / "base", folder / name) for name in ("tuned", "other", "out")]
    for deltas in zip(*(pair.deltas("all") for pair in pairs), strict=True):
        one, other, found = (delta.change for delta in deltas)
        torch.testing.assert_close(found, made(one, other), rtol=1e-5, atol=1e-6)


def test_a_merge_that_means_nothing_is_refused(folder: Path):
    start = ["edit", "merge", folder / "base", "--member", f"a={folder / 'tuned'}", "--out",
             folder / "out"]  # fmt: skip
    for wrong, told in (
        (["--method", "slerp"], "mean, sum or ties"), (["--weight", "a=2"], "of --method sum"),
        (["--method", "sum", "--weight", "c=2"], "no --member"),
        (["--method", "sum", "--weight", "a=2,3"], "one number as --weight of 'a'"),
        (["--method", "ties", "--density", "0"], "density in"),
    ):  # fmt: skip
        done = CliRunner().invoke(app, [str(one) for one in [*start, *wrong]])
        assert told in str(done.exception)
    assert not (folder / "out").exists()


def test_a_strength_that_gives_back_nothing_for_certain_is_not_written(folder: Path):
    few = folder / "few.jsonl"
    asked(PLACES, "apple", 16).save(few)
    done = run(folder, "--prompts", few, "--text", folder / "text.jsonl")
    assert done.exit_code != 0
    assert "Nothing was written" in str(done.exception)
    assert not (folder / "out").exists()


def test_one_of_strength_and_prompts_is_asked_for(folder: Path):
    done = run(folder)
    assert "either --strength, or --prompts" in str(done.exception)
