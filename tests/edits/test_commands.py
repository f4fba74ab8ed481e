"""`workbench edit save` writes what it was told, or what half of the prompts chose, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from tests.skills.conftest import APPLE, PLACES, asked, member, mute, write
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
