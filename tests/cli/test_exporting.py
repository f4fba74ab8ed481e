"""A finished run as a model card's section and as runs of trackers, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import workbench as wb
from tests.export.hostile import retained
from tests.terminal import workbench


@pytest.fixture
def run(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    retained(("full", "r|1")).save(out / "results" / "forgetting.retention")
    about = {
        "title": "Mine <b>", "results": ["forgetting.retention"], "failures": [], "preflight": [],
        "command": "workbench compare B --member a=T", "asked": [],
    }  # fmt: skip
    (out / "run.json").write_text(json.dumps(about))
    return out


def test_a_card_is_printed_or_written(run: Path, tmp_path: Path):
    printed = workbench("card", run)
    assert printed.returncode == 0, printed.stderr
    assert "## Mine &#60;b&#62;\n" in printed.stdout
    assert "workbench compare B --member a=T" in printed.stdout
    file = tmp_path / "card.md"
    for _ in range(2):  # its own earlier one is replaced
        assert workbench("card", run, "--out", file).stdout == f"{file}\n"
    assert file.read_text() == printed.stdout
    mine = f"# My model\n\n{printed.stdout}"
    file.write_text(mine)
    done = workbench("card", run, "--out", file)
    assert done.returncode == 2
    assert "does not hold a model card's section" in done.stderr
    assert file.read_text() == mine


@pytest.mark.parametrize("tool", ["wandb", "mlflow", "tensorboard"])
def test_a_run_is_written_for_a_tool(tool: str, run: Path, tmp_path: Path):
    pytest.importorskip(tool)
    out = tmp_path / tool
    done = workbench("export", run, "--to", tool, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tool}: ")
    kinds = {"wandb": "*.wandb", "mlflow": "meta.yaml", "tensorboard": "events.out.tfevents.*"}
    assert list(out.rglob(kinds[tool]))


def test_bad_input_is_one_sentence(run: Path, tmp_path: Path):
    for words, says in (
        (("export", run, "--to", "excel", "--out", tmp_path / "x"), "wandb, mlflow, tensorboard"),
        (("export", tmp_path / "none", "--to", "wandb", "--out", tmp_path / "x"), "none"),
        (("card", tmp_path / "none"), "Expected the results of a run"),
    ):
        done = workbench(*words)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_names_of_the_package_are_there():
    assert wb.export.card.__doc__
    assert {"card", "to_csv", "to_latex", "to_xarray", "to_wandb"} <= {*dir(wb.export)}
