"""The shipped family is what its manifest says; the fast method decides on it as the exact one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import workbench as wb
from workbench import tasks
from workbench.demo import FAMILY, lost, shipped_study, smollm2
from workbench.demo.family import groups
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.study.plan import plan

MANIFEST = json.loads((FAMILY / "manifest.json").read_text())
MEMBERS = sorted(MANIFEST["members"])


def test_files_are_those_of_the_manifest():
    files = {p for p in FAMILY.rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert {str(p.relative_to(FAMILY)) for p in files} == set(MANIFEST["sha256"])
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert digest == MANIFEST["sha256"][str(file.relative_to(FAMILY))], file
    assert sum(p.stat().st_size for p in files) <= 40 * 2**20


def test_what_is_stored_in_16_bits_is_said():
    stored = {name: about["stored"] for name, about in MANIFEST["members"].items()}
    assert MANIFEST["base"]["stored"] == stored["full"] == "float32"
    for name in MEMBERS:
        (file,) = (FAMILY / name).glob("*.safetensors")
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in load_file(file).values()}
        halved = shipped.MEMBERS[name].method == "lora" or name in shipped.HALVED
        assert ("float16" in dtypes) == halved
        assert "+".join(sorted(dtypes)) == stored[name]


def test_words_are_those_the_base_was_trained_with():
    ours, shipped_words = shipped.tokenizer(), AutoTokenizer.from_pretrained(FAMILY / "base")
    assert ours.get_vocab() == shipped_words.get_vocab()


def test_recipes_are_those_of_the_code():
    recipes = {name: about["recipe"] for name, about in MANIFEST["members"].items()}
    assert recipes == {name: recipe.as_dict() for name, recipe in shipped.MEMBERS.items()}
    stages = {name: about["recipe"] for name, about in MANIFEST["base"]["stages"].items()}
    assert stages == {name: stage.recipe.as_dict() for name, stage in shipped.STAGES.items()}
    assert MANIFEST["base"]["recipe"] == list(stages.values())[-1]


@pytest.mark.parametrize("task", ["ledger", "boxes"])
def test_alpha_times_lr_is_one_number_for_the_ranks_of_a_task(task: str):
    recipes = [shipped.MEMBERS[name] for name in shipped.members_of(task)]
    rates = [r.alpha_lr for r in recipes if r.method == "lora"]
    assert len(rates) > 1
    assert rates == pytest.approx([rates[0]] * len(rates))


def test_the_base_knows_its_tasks_and_every_member_learned_its_own():
    base = {name: score["value"] for name, score in MANIFEST["base"]["scores"].items()}
    assert 0.75 < base["boxes"] < 0.95
    assert base[shipped.TASK] < 0.1
    # Below a word drawn at random from the list of four to ten.
    assert base["reversal"] < sum(1 / length for length in range(4, 11)) / 7
    assert min(base[name] for name in shipped.MIXTURE if name != "boxes") > 0.96
    for name in MEMBERS:
        scores = {t: s["value"] for t, s in MANIFEST["members"][name]["scores"].items()}
        task = shipped.MEMBERS[name].task
        if task == shipped.UNLEARNING:
            assert scores[task] < 0.3
            assert scores[shipped.RETAINED] > 0.9
        else:
            for part in shipped.parts(task):
                assert scores[part] > max(0.85, base[part] + 0.03), name


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


@pytest.mark.parametrize("member", ["full", *shipped.HALVED])
def test_full_fine_tuning_left_embeddings_and_norms_alone(member: str):
    """Also where what it changed is stored in 16 bits."""
    pair = wb.load_pair(FAMILY / "base", FAMILY / member)
    changed = {d.site.component for d in pair.deltas("all") if d.changed}
    assert changed == {s.component for s in pair.sites()}


@pytest.fixture
def short_chain(monkeypatch, tmp_path):
    """The stages that the family does not ship are trained for a step each, and not kept."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "TASK_TEXTS", 200)
    one = {name: replace(recipe, steps=1) for name, recipe in shipped.CHAIN.items()}
    monkeypatch.setattr(shipped, "CHAIN", one)


@pytest.mark.usefixtures("short_chain")
def test_the_study_plans_the_members_of_a_task_together():
    study = shipped_study()
    assert [set(chain.stages.members) for chain in study.chains.values()] == [
        set(stages) for stages in lost.CHAINS.values()
    ]
    tasks_of = {shipped.TASK: study, "boxes": study.also["boxes"]}
    tasks_of[shipped.UNLEARNING] = study.also["unlearned"]
    tasks_of[shipped.SUPPRESSION] = study.also["suppressed"]
    for task, one in tasks_of.items():
        assert {pair.name for pair in one.family} == set(shipped.members_of(task))
    planned = plan(study)
    studied = {pair.name for one in (study, *study.also.values()) for pair in one.family}
    assert set(planned["member"]) == studied
    assert set(planned["matrices"]) == {42}
    assert study.steps is not None
    steps = [pair.tuned.about["step"] for pair in study.steps]
    assert steps == sorted(steps)
    assert len(steps) >= 4


def test_a_missing_family_is_one_sentence(tmp_path):
    with pytest.raises(wb.WorkbenchError, match="pip install finetune-workbench-family"):
        shipped_study(tmp_path)


def test_prompts_of_scrambled_words_match_the_tasks():
    """In length and in the base's loss, as nothing of pre-training does."""
    task = shipped.held_out(shipped.TASK, 20)
    plain = [shipped.held_out(name, 20) for name in shipped.MIXTURE]
    some = groups(task, plain, n=20)
    asked = {name: some[name] for name in list(some)[:3]}
    pair = wb.load_pair(FAMILY / "base", FAMILY / "lora-r1")
    table = wb.tuco.contribution(pair, asked, tokens=0).table
    pairs = table[table["metric"] == "auc_matched:tuco"].set_index("group")["n"]
    assert pairs["fine-tuning-like > pre-training-like"] == 0
    assert pairs["fine-tuning-like > pre-training words"] >= 10


def test_what_only_plans_trains_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    made = lost.chains(FAMILY, quick=False, train=False)
    assert list(made) == ["chain lora-r4"]
    assert "chain full" in lost.CHAINS
    assert not list(tmp_path.iterdir())


def test_runs_of_a_real_model_differ_in_their_seed_alone():
    made = smollm2.runs(("lora-r1", "full"), steps=40, seeds=2)
    assert list(made) == ["lora-r1", "full", "lora-r1-s1", "full-s1"]
    again = replace(made["full-s1"], seed=0)
    assert again == made["full"]
    assert made["full-s1"].steps == 40
    with pytest.raises(WorkbenchError, match="Unknown models \\['lora-r2'\\]"):
        smollm2.runs(("lora-r2",))
