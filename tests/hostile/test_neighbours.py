"""Runs, reports and figure specs that lie beside, or are made of, what somebody else put there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import workbench as wb
from tests.conftest import contents
from tests.figures.synthetic import family, intruders, retention
from tests.hostile.guard import require_sentence
from workbench.figures import Spec
from workbench.files import writing as outputs
from workbench.results import run_folder
from workbench.skills.graft import Graft
from workbench.study import runs

BOUND = 60  # seconds by the clock


def refused(says: str, read, *arguments) -> None:
    start = time.monotonic()
    with pytest.raises(wb.WorkbenchError) as caught:
        read(*arguments)
    assert says in str(caught.value)
    require_sentence(str(caught.value))
    assert time.monotonic() - start < BOUND


def kept(out: Path, **failed: Exception) -> Path:
    """A run of two results, with its figures and report."""
    made = {one.analysis: one for one in (intruders(family(3)), retention(family(3)))}
    run_folder.begin(out)
    for name, one in made.items():
        one.save(out / "results" / name)
    runs.keep(out, made, failed=failed, formats=("png",))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return kept(tmp_path_factory.mktemp("whole") / "run", a=ValueError("told"))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def spec(folder: Path, **more) -> Path:
    panels = [{"analysis": "spectral.intruders", "figure": "count"}]
    told = {"results": "results", "style": "notebook", "size": [3, 2], "panels": panels} | more
    (folder / "panels.yaml").write_text(json.dumps(told))
    return folder / "panels.yaml"


def test_of_failed_only_the_runs_own_tracebacks_go(run: Path):
    mine = {"01.txt": "mine", "07.txt": "a: not theirs", "notes.md": "mine", "07.log": "mine"}
    own = next((run / "failed").glob("*.txt"))
    assert own.read_text().startswith("a: ValueError: told\n")
    own.rename(run / "failed" / "02.txt")
    for name, text in mine.items():
        (run / "failed" / name).write_text(text)
    kept(run, b=ValueError("again"))
    found = {name: raw.decode() for name, raw in contents(run / "failed").items()}
    assert {name: found[name] for name in mine} == mine
    (new,) = found.keys() - mine.keys()
    assert found[new].startswith("b: ValueError: again\n")
    kept(run)
    assert contents(run / "failed").keys() == mine.keys()


@pytest.mark.parametrize("name", ["figures", "failed", "results", "units", "report.html"])
def test_links_lead_nothing_out_of_a_run(name: str, run: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    if (run / name).is_dir():
        shutil.copytree(run / name, elsewhere)
        shutil.rmtree(run / name)
    else:
        elsewhere.mkdir()
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(elsewhere)
    before = contents(elsewhere)
    if name in ("figures", "report.html"):
        refused("is a link", runs.redraw, run)
    refused("is a link", kept, run)
    assert contents(elsewhere) == before


@pytest.mark.parametrize("name", ["result.json", "table.parquet", "tensors.safetensors"])
def test_a_pipe_in_a_result_is_not_waited_for(name: str, run: Path, tmp_path: Path):
    folder = run / "results" / "forgetting.retention"
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(str(folder), wb.Result.load, folder)
    refused(str(folder), wb.report, [folder], tmp_path / "page.html")
    refused("forgetting.retention", runs.redraw, run)


def test_pipes_in_the_place_of_other_files_are_not_waited_for(run: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    refused("no such file", Graft.load, tmp_path / "pipe")
    refused("found none", Spec.load, tmp_path / "pipe")
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    refused("run.json", runs.redraw, run)


@pytest.mark.parametrize("where", ["said", "in the table"])
def test_a_hundred_thousand_members_are_refused(where: str, tmp_path: Path):
    made = retention(family(2))
    about = made.provenance.members["full"]
    table = made.of("full").table
    if where == "said":
        members = {f"m{i}": about for i in range(100_000)}
    else:
        members, rows = {"full": about}, table.iloc[[0] * 100_000].reset_index(drop=True)
        table = rows.assign(member=[f"m{i}" for i in range(100_000)])
    folder = wb.Result(made.analysis, table, replace(made.provenance, members=members)).save(
        tmp_path / "r"
    )
    refused("100000 models, and no more than", wb.report, [folder], tmp_path / "page.html")


def test_a_figure_has_no_thousands_of_columns(run: Path):
    refused("Expected 1 to 48 columns", Spec.load, spec(run, columns=5000))
    start = time.monotonic()
    panels = [{"analysis": "spectral.intruders", "figure": "count", "span": 48}] * 26
    assert Spec.load(spec(run, columns=48, panels=panels, size=[24, 24])).draw().subfigs
    assert time.monotonic() - start < BOUND


@pytest.mark.parametrize("place", ["{elsewhere}", "../elsewhere", "results/../../elsewhere",
                                   "link"])  # fmt: skip
@pytest.mark.parametrize("key", ["results", "analysis"])
def test_a_spec_reads_nothing_outside_its_folder(
    key: str, place: str, run: Path, tmp_path: Path, monkeypatch
):
    """Negative control: from where both are below, it does."""
    elsewhere = Path(shutil.copytree(run / "results", tmp_path / "elsewhere"))
    (run / "link").symlink_to(elsewhere)
    named = place.format(elsewhere=elsewhere)
    if key == "results":
        file = spec(run, results=named)
    else:
        wanted = f"{named}/spectral.intruders"
        file = spec(run, results=".", panels=[{"analysis": wanted, "figure": "count"}])
    monkeypatch.chdir(run)
    refused("neither below its own folder", Spec.load, file)
    monkeypatch.chdir(tmp_path)
    assert Spec.load(file).draw()


@pytest.mark.parametrize("name", ["\ud800\udc00", "a\0b", "a" * 5000])
def test_a_spec_names_what_no_folder_can_be_called(name: str, run: Path):
    refused("no folder can be called", lambda: Spec.load(spec(run, results=name)))


NEIGHBOURS = ('{"format": 1}', "[]", "{", '{"format": 1, "analysis": 3}', "",
              '{"format": 1, "analysis": "forgetting.retention"}',
              '{"format": 1, "analysis": ["forgetting.retention"]}')  # fmt: skip


@pytest.mark.parametrize("content", NEIGHBOURS)
def test_what_lies_beside_a_result_does_not_keep_it_from_being_drawn(content: str, run: Path):
    beside = run / "results" / "beside"
    beside.mkdir()
    (beside / "result.json").write_text(content)
    assert Spec.load(spec(run)).draw()
    assert set(run_folder.load(run)) == {"spectral.intruders", "forgetting.retention"}


REPLACED = """
import os, sys
import workbench as wb
from workbench.files import writing as outputs
made = wb.Result.load(sys.argv[1])
real = os.rename
def rename(source, place):
    real(source, place)
    if os.path.basename(place) == outputs.WAS:
        os._exit(9)
os.rename = rename
made.save(sys.argv[1])
"""


def test_a_run_whose_result_was_being_replaced_is_drawn_again(run: Path):
    folder = run / "results" / "forgetting.retention"
    before = contents(folder)
    done = subprocess.run([sys.executable, "-c", REPLACED, str(folder)], check=False)
    assert done.returncode == 9
    assert not folder.exists()
    assert runs.redraw(run, formats=("png",)).is_file()
    assert contents(folder) == before
    assert [path.name for path in outputs.finished(run / "results")].count(folder.name) == 1
