"""`workbench skills` gives the functions' tables; a study reports grafts, their overlap and sum."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench as wb
from tests.figures.looking import check
from tests.skills.conftest import APPLE, BOOK, JOBS, PLACES, asked, member, mute, write
from workbench import figures
from workbench.cli import app
from workbench.study import compare as comparing
from workbench.study.compare import compare
from workbench.study.study import Study

CHANGES = {"places": {(APPLE, PLACES): 3.0}, "jobs": {(BOOK, JOBS): 3.0}}
TASKS = {"places": asked(PLACES, "apple", 24, "places"), "jobs": asked(JOBS, "book", 24, "jobs")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import torch

    with torch.no_grad():
        write(mute(), tmp_path / "base")
        for name, changes in CHANGES.items():
            write(member(changes, 0.002), tmp_path / name)
            TASKS[name].save(tmp_path / f"{name}.jsonl")
    return tmp_path


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["skills", *map(str, arguments)])
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done.output


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("localize", ["--sparsity", "0.001,0.1", "--arms", "movement,random"]),
        ("restore", ["--shares", "0.1,0.5", "--arms", "movement,random"]),
        ("compression", []),
        ("calibration", []),
        ("blocks", ["--most", "2"]),
    ],
)
def test_every_verb_saves_its_result_and_draws(folder: Path, verb: str, options: list[str]):
    prompts = ["--prompts", folder / "places.jsonl", "--other", folder / "jobs.jsonl"]
    kept = folder / "kept"
    run(verb, folder / "base", folder / "places", *prompts, *options, "--out", kept)
    result = wb.Result.load(kept)
    assert result.analysis == f"skills.{verb}"
    assert figures.headline(result).endswith(".")
    drawn = list(figures.drawings(result, [result]))
    assert drawn
    for drawing, group in drawn:
        check(drawing.name, drawing.draw(*group))


def test_grafts_are_taken_out_compared_and_put_together(folder: Path):
    given, names = [], list(CHANGES)
    for name in names:
        options = ["--prompts", folder / f"{name}.jsonl", "--arms", "movement,learned",
                   "--sparsity", "0.0001"]  # fmt: skip
        run("localize", folder / "base", folder / name, *options, "--out", folder / f"r-{name}")
        file = folder / f"{name}.safetensors"
        told = run("graft", folder / f"r-{name}", file, "--arm", "movement")
        assert "2 of 23,232 entries" in told
        given += ["--member", f"{name}={folder / name}", "--graft", f"{name}={file}",
                  "--prompts", f"{name}={folder / f'{name}.jsonl'}"]  # fmt: skip
    run("overlap", *(folder / f"r-{name}" for name in names), "--arm", "movement",
        "--out", folder / "overlap")  # fmt: skip
    shared = wb.Result.load(folder / "overlap").metric("overlap")
    assert shared["value"].max() < 1
    run("compose", folder / "base", *given, "--out", folder / "composed")
    found = wb.Result.load(folder / "composed").metric("interference")
    assert found["value"].tolist() == [0, 0]
    assert found["baseline"].tolist() == [1, 1]


def test_a_missing_graft_is_one_sentence(folder: Path):
    options = ["--member", f"a={folder / 'places'}", "--prompts", "a=x", "--graft", "b=y"]
    done = CliRunner().invoke(app, ["skills", "compose", str(folder / "base"), *options])
    assert isinstance(done.exception, wb.WorkbenchError)
    assert "a lacks one" in str(done.exception)


def test_a_study_reports_grafts_their_overlap_and_their_sum(folder: Path):
    def study(name: str) -> Study:
        return Study(
            wb.load_family(folder / "base", {name: folder / name}),
            task=TASKS[name],
            only=("skills.localize",),
            options={"skills.localize": {"sparsity": 1e-4, "arms": ("movement", "random")}},
        )

    whole = Study(**(vars(study("places")) | {"also": {"jobs": study("jobs")}}))
    page = compare(whole, folder / "out", formats=("png",)).read_text()
    results = {p.name: wb.Result.load(p) for p in (folder / "out" / "results").iterdir()}
    assert set(results) == {
        "compare.equivalence", "skills.localize", "skills.localize.jobs", "skills.overlap",
        "skills.compose.full",
    }  # fmt: skip
    assert results["skills.compose.full"].metric("interference")["value"].tolist() == [0, 0]
    for title in ("How few parameters carry the skill", "Do the grafts share", "Do the skills add"):
        assert title in page
    before = {p: p.stat().st_mtime_ns for p in (folder / "out" / "units").rglob("*.parquet")}
    assert before
    comparing.results(whole, folder / "out")
    assert before == {
        p: p.stat().st_mtime_ns for p in (folder / "out" / "units").rglob("*.parquet")
    }
