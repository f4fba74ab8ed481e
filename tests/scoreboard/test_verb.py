"""`workbench truth` prints what is saved, and saves what `wb.truth` gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.lab.compiled import pairs
from workbench.results.result import Result
from workbench.scoreboard import board
from workbench.scoreboard.outside import NORM


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the compiled pairs stand for all of them."""
    monkeypatch.setattr(board, "pairs", lambda out: pairs(out, ["copy-decoy", "facts-rank-3"]))


@pytest.mark.usefixtures("two")
def test_the_table_is_printed_and_saved(tmp_path: Path):
    asked = ["truth", "--only", "spectral.delta_spectrum", "--phantoms", "0"]
    done = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "board")])
    assert done.exit_code == 0, done.output
    assert "spectral.delta_spectrum" in done.output
    assert NORM in " ".join(done.output.split())
    kept = Result.load(tmp_path / "board")
    assert kept.analysis == "truth.scoreboard"
    whole = kept.table[(kept.table["truth"] == "all") & (kept.table["metric"] == "auroc")]
    assert set(whole["method"]) == {NORM, "spectral.delta_spectrum"}
    lines = CliRunner().invoke(app, [*asked, "--json"]).output.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    again = {(r["method"], r["place"]): r["value"] for r in rows
             if r["truth"] == "all" and r["metric"] == "auroc"}  # fmt: skip
    first = zip(whole["method"], whole["place"], whole["value"], strict=True)
    assert again == pytest.approx({(method, place): value for method, place, value in first})


def test_a_method_that_is_none_ends_in_a_sentence():
    done = CliRunner().invoke(app, ["truth", "--only", "patchings"])
    assert done.exit_code != 0
    assert "No method begins with 'patchings'" in str(done.exception)
