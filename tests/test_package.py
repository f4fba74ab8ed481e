"""What is installed works away from the clone: two wheels, a fresh environment, any folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import workbench
from tests.test_readme import verbs
from workbench.cli import app

ROOT = Path(__file__).parents[1]
UNPLUGGED = Path(__file__).parent / "unplugged" / "sitecustomize.py"
# What only a clone has.
CLONE = re.compile(r"\b(data/family|figures/\w|benchmarks|notebooks/|tests/|the clone|make \w+`)")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """ "code" and "family", built as `make dist` does."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", out, ".", "./data"], cwd=ROOT, check=True)
    code, family = sorted(out.glob("*.whl"))
    return {"code": code, "family": family}


class Fresh:
    """A new environment with a folder to stand in. Of the running one it reuses the libraries, not
    the workbench: a path in a .pth file is searched, its own .pth files are not read."""

    def __init__(self, place: Path) -> None:
        venv.create(place / "env", with_pip=False, symlinks=True)
        self.bin, self.work = place / "env" / "bin", place / "work"
        self.work.mkdir()
        (self.site,) = (place / "env").glob("lib/python*/site-packages")
        (self.site / "reused.pth").write_text(sysconfig.get_path("purelib"))
        shutil.copy(UNPLUGGED, self.site)
        self.asked = place / "asked"  # of other machines

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        left = ("PYTHONPATH", "HF_HUB_OFFLINE")
        own = {name: value for name, value in os.environ.items() if name not in left}
        own["ASKED"] = str(self.asked)
        return subprocess.run(
            [self.bin / words[0], *words[1:]],
            cwd=self.work, env=own, capture_output=True, text=True,
        )  # fmt: skip


def test_the_demo_runs_to_its_report_from_the_wheels_alone(wheels, tmp_path):
    fresh = Fresh(tmp_path)
    fresh.install(wheels["code"])
    place = fresh.run("python", "-c", "import workbench; print(workbench.__file__)").stdout
    assert Path(place.strip()).is_relative_to(fresh.site)
    said = fresh.run("workbench", "--version").stdout
    assert said == f"workbench {workbench.__version__}\n"
    few = ("workbench", "demo", "--only", "spectral.intruders", "--only", "tuco.contribution")
    alone = fresh.run(*few)
    assert alone.returncode == 2
    assert alone.stderr.count("\n") == 1
    assert "pip install finetune-workbench-family" in alone.stderr
    fresh.install(wheels["family"])
    both = fresh.run(*few)
    assert both.returncode == 0, both.stderr
    assert (fresh.work / "out" / "demo" / "report.html").stat().st_size > 10**5
    assert not fresh.asked.exists(), fresh.asked.read_text()


def test_the_wheel_is_typed_and_says_who_made_it(wheels):
    with zipfile.ZipFile(wheels["code"]) as archive:
        names = archive.namelist()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        about = archive.read(metadata).decode()
    assert {"workbench/py.typed", "workbench/reports/report.html.jinja"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"workbench", metadata.split("/")[0]}
    head, _, page = about.partition("\n\n")
    assert "Name: finetune-workbench\n" in head
    assert f"Version: {workbench.__version__}\n" in head
    for field in ("Author", "Classifier", "Keywords", "License-Expression"):
        assert re.search(rf"^{field}: ", head, re.M), field
    # Every picture and link of the page leads somewhere from anywhere.
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert targets
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []


def test_the_tree_is_light_enough_to_be_sent():
    """To a machine that takes 64 MiB, with some wheels beside it; and nothing that a command draws
    again is in it. The family is 40 of them, what the findings are read from most of the rest."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(file.stat().st_size for file in files if file.exists()) <= 51 * 2**20
    drawn = {file for file in files if file.suffix in (".png", ".pdf", ".html")}
    shown = re.findall(r"\(figures/([\w.-]+\.png)\)", (ROOT / "README.md").read_text())
    assert drawn == {ROOT / "figures" / name for name in shown}


def test_one_version_is_told_everywhere(wheels):
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert told == workbench.__version__
    assert {w.name.split("-")[1] for w in wheels.values()} == {workbench.__version__}


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_help_names_nothing_that_only_a_clone_has(verb: list[str]):
    assert not CLONE.search(CliRunner().invoke(app, [*verb, "--help"]).output)
