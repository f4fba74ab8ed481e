"""`workbench patch` gives the functions' tables; a study takes others beside it into one report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import workbench as wb
from tests.figures.looking import check
from tests.patching.conftest import boxes, model, paired
from workbench import figures
from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.study.compare import compare
from workbench.study.plan import plan
from workbench.study.study import Study


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Path]:
    """Two models and eight prompts, which no command writes to."""
    folder = tmp_path_factory.mktemp("pair")
    with torch.no_grad():
        paired(model(seed=0), model(seed=1), folder)
    boxes(8).save(folder / "boxes.jsonl")
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def folders(pair: Path, tmp_path: Path) -> Path:
    """A folder of the test's own in which they stand."""
    for path in pair.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def run(folders, *arguments):
    verb, *more = arguments
    pair = [str(folders / "base"), str(folders / "tuned")]
    done = CliRunner().invoke(app, ["patch", verb, *pair, *map(str, more)])
    return done


@pytest.mark.parametrize(
    ("verb", "options", "key"),
    [
        ("activation", ["--sites", "z,resid_mid", "--positions", "-1,query box"], "activation"),
        ("cmap", ["--sites", "head", "--window", "3"], "cross_model"),
        ("restore", ["--components", "mlp.down_proj"], "restore"),
        ("path", ["--receivers", "2.0,2.1", "--part", "q"], "path"),
        ("path", ["--receivers", "1.mlp,2.0@-1", "--senders", "0.mlp,0.1,embedding"], "path"),
        ("circuit", ["--random", "0"], "circuit"),
        ("attribution", ["--exact", "2"], "attribution"),
        ("lens", [], "lens"),
        ("patterns", [], "patterns"),
    ],
)
def test_every_verb_saves_its_result_and_draws(folders, verb, options, key):
    prompts = ["--prompts", folders / "boxes.jsonl"]
    done = run(folders, verb, *prompts, *options, "--out", folders / "kept")
    assert done.exit_code == 0, done.output
    result = wb.Result.load(folders / "kept")
    assert result.analysis == f"patching.{key}"
    assert figures.headline(result).endswith(".")
    if key != "restore":  # drawn beside others
        check(key, result.plot())
    for drawing, group in figures.drawings(result, [result]):
        check(drawing.name, drawing.draw(*group))


@pytest.mark.parametrize("component", ["head", "mlp"])
def test_masks_are_drawn(folders, component):
    options = ["--n", "8", "--count", "4", "--component", component, "--out", folders / "kept"]
    assert run(folders, "mask", *options).exit_code == 0
    check("mask", wb.Result.load(folders / "kept").plot())


def test_mask_needs_no_prompts(folders):
    done = run(folders, "mask", "--n", "8", "--count", "4", "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert {row["arm"] for row in rows if row["metric"] == "score"} == {
        "patch", "all", "none", "random"
    }  # fmt: skip


def test_json_lines_are_the_functions_table(folders):
    prompts = wb.tasks.PromptSet.load(folders / "boxes.jsonl")
    done = run(folders, "cmap", "--prompts", folders / "boxes.jsonl", "--sites", "mlp_out",
               "--direction", "tuned->base", "--json")  # fmt: skip
    rows = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    pair = wb.load_pair(folders / "base", folders / "tuned")
    table = wb.patching.cross_model(pair, prompts, sites=["mlp_out"]).metric("krs")
    found = [r["value"] for r in rows if r["metric"] == "krs"]
    assert found == pytest.approx(table["value"].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cmap", "--sites", "nowhere"], "Unknown site 'nowhere'"),
        (["cmap", "--direction", "down"], "tuned->base"),
        (["path", "--receivers", "three"], "LAYER.HEAD"),
        (["path", "--position", "query box,-1"], "one position"),
        (["restore", "--components", "mlp.none"], "No layer has a component 'mlp.none'"),
        (["activation", "--positions", "the moon"], "no span 'the moon'"),
    ],
)
def test_bad_input_is_one_sentence(folders, arguments, says):
    done = run(folders, *arguments, "--prompts", folders / "boxes.jsonl")
    assert isinstance(done.exception, WorkbenchError)
    assert re.search(says, str(done.exception))


def test_studies_beside_a_study(folders):
    """Their results stand in one report under names of their own, and --only reaches them."""
    prompts = wb.tasks.PromptSet.load(folders / "boxes.jsonl")
    family = wb.load_family(folders / "base", {"full": folders / "tuned"})
    other = wb.load_family(folders / "base", {"other": folders / "tuned"})
    beside = Study(
        other, task=prompts, corrupted=wb.tasks.corrupt(prompts), only=("patching.activation",)
    )
    study = Study(family, task=prompts, only=("patching.restore",), also={"boxes": beside})
    assert len(plan(study)) == 2
    out = folders / "out"
    page = compare(study, out, formats=("png",)).read_text()
    assert {f.name for f in (out / "results").iterdir()} == {
        "patching.restore", "patching.activation.boxes"
    }  # fmt: skip
    assert "Where the answer comes from" in page
    narrowed = study.narrowed(["patching.activation"])
    assert narrowed.analyses == []
    assert [a.key for a in narrowed.also["boxes"].analyses] == ["patching.activation"]
    with pytest.raises(WorkbenchError, match="no data for patching"):
        study.narrowed(["patching.mask"])
    with pytest.raises(WorkbenchError, match="Unknown analysis"):
        study.narrowed(["patching.everything"])
    assert replace(study, only=None).narrowed(()).only is None
