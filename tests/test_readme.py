"""Every path and command that the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from workbench.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
FOLDERS = r"(?:workbench|tests|notebooks|data|benchmarks|figures|\.ci)"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_path_exists(document: str):
    text = (ROOT / document).read_text()
    named = set(re.findall(rf"[`(\"' ]({FOLDERS}/[\w./-]*\w)", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    if document == "README.md":
        assert named


def test_every_named_make_target_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`?make ([\w-]+)`?", (ROOT / "README.md").read_text()))
    assert named
    assert named <= targets


def verbs(group=None, path=()):
    group = group or typer.main.get_command(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from verbs(command, (*path, name))
        else:
            yield [*path, name]


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_every_verb_helps_with_an_example(verb: list[str]):
    done = CliRunner().invoke(app, [*verb, "--help"])
    assert done.exit_code == 0
    assert "Example: workbench " + " ".join(verb) in " ".join(done.output.split())


def test_every_link_of_readme_leads_to_a_file():
    links = re.findall(r"\]\((?!https?://|#)([^)#]*)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
