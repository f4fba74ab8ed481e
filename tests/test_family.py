"""The shipped family is what its manifest says; the fast method decides on it as the exact one."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

import workbench as wb
from workbench import compare, tasks
from workbench.demo import FAMILY, shipped_study
from workbench.lab import shipped

MANIFEST = json.loads((FAMILY / "manifest.json").read_text())
MEMBERS = sorted(MANIFEST["members"])


def test_files_are_those_of_the_manifest():
    files = {p for p in FAMILY.rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert {str(p.relative_to(FAMILY)) for p in files} == set(MANIFEST["sha256"])
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert digest == MANIFEST["sha256"][str(file.relative_to(FAMILY))], file
    assert sum(p.stat().st_size for p in files) < 60e6


def test_recipes_are_those_of_the_code():
    recipes = {name: about["recipe"] for name, about in MANIFEST["members"].items()}
    assert recipes == {name: recipe.as_dict() for name, recipe in shipped.MEMBERS.items()}
    assert MANIFEST["base"]["recipe"] == shipped.PRETRAINING.as_dict()
    rates = {r.alpha_lr for r in shipped.MEMBERS.values() if r.method == "lora"}
    assert max(rates) == pytest.approx(min(rates))


def test_a_members_score_is_the_manifests():
    pair = wb.load_pair(FAMILY / "base", FAMILY / "lora-r4")
    prompts = getattr(tasks, shipped.TASK)(400, seed=1, split="test")
    found = wb.forgetting.retention(pair, [prompts], texts=["Now ."], task=shipped.TASK)
    row = found.metric("score").iloc[0]
    recorded = MANIFEST["members"]["lora-r4"]["scores"][shipped.TASK]
    assert row["value"] == pytest.approx(recorded["value"], abs=0.006)
    assert row["baseline"] == pytest.approx(
        MANIFEST["base"]["scores"][shipped.TASK]["value"], abs=0.006
    )


@pytest.mark.parametrize("member", MEMBERS)
def test_auto_and_exact_decide_alike_on_every_matrix(member: str):
    pair = wb.load_pair(FAMILY / "base", FAMILY / member, member)
    tables = [
        wb.spectral.intruders(pair, method=method, nulls=False).table.set_index(
            ["layer", "component", "rank", "metric"]
        )["value"]
        for method in ("auto", "exact")
    ]
    ours, theirs = (table.xs("intruder", level="metric") for table in tables)
    assert len(ours) == 42 * 10
    assert (ours == theirs).all()
    cosines = [torch.tensor(t.xs("max_cosine", level="metric").to_numpy()) for t in tables]
    # Where two singular values nearly coincide their vectors turn into each other in float32.
    close = (cosines[0] - cosines[1]).abs() <= 2e-3
    assert close.float().mean() > 0.98


def test_full_fine_tuning_left_embeddings_and_norms_alone():
    pair = wb.load_pair(FAMILY / "base", FAMILY / "full")
    changed = {d.site.component for d in pair.deltas("all") if d.changed}
    assert changed == {s.component for s in pair.sites()}


def test_the_study_plans_every_member_and_its_steps():
    study = shipped_study(quick=True)
    plan = compare.plan(study)
    assert set(plan["member"]) == set(MEMBERS)
    assert set(plan["matrices"]) == {42}
    assert study.steps is not None
    steps = [pair.tuned.about["step"] for pair in study.steps]
    assert steps == sorted(steps)
    assert len(steps) >= 4


def test_a_missing_family_is_one_sentence(tmp_path):
    with pytest.raises(wb.WorkbenchError, match="clone of the repository"):
        shipped_study(tmp_path)
