"""What is told of models that learned nothing: the same, beside the others, in none of theirs."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench as wb
from tests.calls import write_pair
from tests.conftest import adapter, contents
from tests.models.conftest import decoder
from workbench.cli import app
from workbench.results.run_folder import failures, load_phantoms
from workbench.study import study as studies
from workbench.study.catalogue import ANALYSES
from workbench.study.compare import compare
from workbench.study.phantoms import disk, nothing_learned
from workbench.study.plan import plan
from workbench.study.runs import redraw
from workbench.study.study import Study

PNG = ("png",)
ONLY = ("spectral.intruders", "forgetting.retention")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """A full fine-tune and a LoRA, and beside them the LoRA in a study of its own."""
    folder = tmp_path_factory.mktemp("family")
    pair = write_pair(folder)
    kind = str(pair.base.config["model_type"])
    lora = adapter(decoder(kind), folder / "lora")
    family = wb.load_family(folder / "base", {"full": folder / "tuned", "lora": lora})
    task = wb.tasks.boxes(6, seed=3, split="test", count=3)
    alone = Study(
        wb.load_family(folder / "base", {"lora": lora}), only=("spectral.delta_spectrum",)
    )
    return Study(
        family, task=task, texts=task.texts[:3], only=ONLY, also={"own": alone}, phantoms=2
    )


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    compare(study, out, formats=PNG)
    assert failures(out) == []
    return out


def test_every_analysis_is_run_on_them_and_kept_apart(finished: Path):
    drawn = {f"phantom of {name}/{number}" for name in ("full", "lora") for number in (1, 2)}
    for key in ONLY:
        assert set(wb.Result.load(finished / "results" / key).members) == {"full", "lora"}
        assert set(wb.Result.load(finished / "phantoms" / key).members) == drawn
    own = wb.Result.load(finished / "phantoms" / "spectral.delta_spectrum.own")
    assert own.members == ["phantom of lora/1", "phantom of lora/2"]
    # What is measured of a change's size alone is the same of a phantom.
    real = wb.Result.load(finished / "results" / "spectral.delta_spectrum.own")
    norms, others = (one.metric("effective_rank").groupby("member") for one in (real, own))
    assert norms["value"].mean()["lora"] == pytest.approx(others["value"].mean().iloc[0], rel=1e-4)
    kinds = {about["phantom"] for about in own.provenance.members.values()}
    assert kinds == {"spectrum"}


def test_the_first_page_and_every_chapter_say_what_is_of_them(finished: Path):
    page = html.unescape((finished / "report.html").read_text())
    screen, *chapters = page.split('<details class="chapter"')
    assert screen.count("Of 2 models like it that learned nothing: ") == 2
    assert screen.count("learned nothing ") >= 2  # in the table of measures
    made = load_phantoms(finished)["compare.equivalence"]
    assert isinstance(made, wb.Result)
    rows = made.metric("measure").set_index(["member", "measure"])
    loss = rows.loc[("phantom of lora", "forgetting")]
    assert loss["runs"] == 2
    assert wb.figures.interval(loss["value"], loss["low"], loss["high"]) in screen
    for chapter in chapters:
        name = re.search('data-name="([^"]+)"', chapter)
        assert name
        assert re.search(r"Of (2|4) models that learned nothing: ", chapter), name[1]
        assert "phantom of lora/1" in chapter or "phantom of lora may" in chapter, name[1]
    # Nothing that draws the models knows of them.
    assert "phantom" not in json.dumps(json.loads((finished / "run.json").read_text())["looks"])


def test_drawn_again_it_is_the_same_and_a_run_without_them_has_none(study, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    page = (run / "report.html").read_bytes()
    assert redraw(run, formats=PNG).read_bytes() == page
    before = contents(run / "units")
    compare(replace(study, phantoms=0), run, formats=PNG)
    assert contents(run / "units") == before  # nothing is computed again
    assert b"learned nothing" not in (run / "report.html").read_bytes()
    shutil.rmtree(run / "phantoms")
    redraw(run, formats=PNG)


def test_a_listed_one_that_is_gone_is_told(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "phantoms" / ONLY[0])
    with pytest.raises(wb.WorkbenchError, match="Expected a saved Result"):
        redraw(run, formats=PNG)


def refusing(pair: wb.CheckpointPair, *, device: str = "cpu") -> wb.Result:
    if "phantom" in pair.name:
        raise wb.WorkbenchError("Expected a skill, found none; give a model that has one.")
    return wb.spectral.delta_spectrum(pair, device=device)


def broken(pair: wb.CheckpointPair, *, device: str = "cpu") -> wb.Result:
    if "phantom" in pair.name:
        raise ZeroDivisionError("by nothing")
    return wb.spectral.delta_spectrum(pair, device=device)


@pytest.mark.parametrize(("function", "failed"), [(refusing, 0), (broken, 2)])
def test_what_is_refused_of_them_is_an_answer_and_what_breaks_a_failure(
    function, failed, study, tmp_path, monkeypatch
):
    key = "spectral.delta_spectrum"
    swapped = [replace(a, function=function) if a.key == key else a for a in ANALYSES]
    monkeypatch.setattr(studies, "ANALYSES", tuple(swapped))
    lone = replace(study.also["own"], phantoms=2)
    page = html.unescape(compare(lone, tmp_path, formats=PNG).read_text())
    assert len(failures(tmp_path)) == failed
    assert ("this could not be told: Expected a skill, found none" in page) == (failed == 0)
    assert wb.Result.load(tmp_path / "results" / key).members == ["lora"]


def test_the_plan_counts_them(study):
    planned, without = plan(study), plan(replace(study, phantoms=0))
    assert len(planned) == 3 * len(without)
    assert planned["minutes"].sum() == pytest.approx(3 * without["minutes"].sum())
    own, missing = nothing_learned(study)
    assert own is not None
    assert missing == {}
    assert {*planned["member"]} == {"full", "lora", *own.family.members}
    assert {*own.also["own"].family.members} == {"phantom of lora/1", "phantom of lora/2"}
    files = [f for m in own.family.members.values() for f in (Path(m.adapter or str(m.reference)),)]
    stored = sum(f.stat().st_size for folder in files for f in folder.glob("*.safetensors"))
    assert disk(study) == pytest.approx(stored, rel=0.2)  # and headers


def test_a_member_that_has_no_phantom_is_named(study):
    same = wb.load_family(str(study.family.base.reference),
                          {"same": str(study.family.base.reference)})  # fmt: skip
    own, missing = nothing_learned(Study(same, phantoms=1))
    assert own is None
    assert "the weights of its base" in str(missing["phantoms of same"])


def test_a_number_below_zero_is_refused(study):
    with pytest.raises(wb.WorkbenchError, match="Expected a number of phantoms"):
        replace(study, phantoms=-1)


def test_the_command(study, tmp_path):
    """Its options are saved, and read again."""
    family = study.family
    members = [f"--member=full={family.members['full'].reference}"]
    command = ["compare", str(family.base.reference), *members, "--only", ONLY[0]]
    done = CliRunner().invoke(app, [*command, "--phantoms", "1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "MiB in the cache folder for phantoms" in done.output
    assert "phantoms: 1" in (tmp_path / "out" / "config.yaml").read_text()
    again = CliRunner().invoke(
        app, ["compare", "--config", str(tmp_path / "out" / "config.yaml"), "--dry-run"]
    )
    assert "phantom of full/1" in again.output
    bad = CliRunner().invoke(app, [*command, "--phantoms", "-1", "--out", str(tmp_path / "out")])
    assert bad.exit_code == 2
