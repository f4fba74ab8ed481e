"""`workbench view` opens a report's file, and nothing else."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from workbench.cli import app


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: found.append(address) or True)
    return found


def test_it_opens_the_file_of_a_run_or_the_file_itself(tmp_path, opened):
    page = tmp_path / "report.html"
    page.write_text("<html>")
    for given in (tmp_path, page):
        done = CliRunner().invoke(app, ["view", str(given)])
        assert done.exit_code == 0
        assert str(page) in done.output.replace("\n", "")
    assert opened == [page.resolve().as_uri()] * 2


@pytest.mark.parametrize("name", ["", "absent", "notes.txt"])
def test_what_is_no_report_is_refused(tmp_path, opened, name):
    (tmp_path / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["view", str(tmp_path / name)])
    assert done.exit_code != 0
    assert opened == []
