"""Chats are rendered before an analysis runs them, by the template that is asked for, which the
Result tells."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from tests.calls import Asked, write_pair
from tests.conftest import adapter
from workbench import tasks
from workbench.analysis.rendering import noted, rendered
from workbench.lab.data import prepare
from workbench.skills.compose import Skill
from workbench.study.study import Study
from workbench.tasks import Prompt, PromptSet

OURS = "{% for m in messages %} {{ m.role }} : {{ m.content }}{% endfor %} it : "
THEIRS = "{% for m in messages %} {{ m.content }} .{% endfor %} so "
TURNS = (
    {"role": "system", "content": "Say it"},
    {"role": "user", "content": "the ball is red"},
    {"role": "assistant", "content": "the hat"},
    {"role": "user", "content": "the cup is"},
)
CHATS = PromptSet(
    "chats",
    tuple(
        Prompt(str(i), "the cup is", word, messages=TURNS[-n:])
        for i, (word, n) in enumerate((("blue", 4), ("green", 1), ("red", 3)))
    ),
)


def speaks(folder: Path, template: str | None) -> None:
    file = folder / "tokenizer_config.json"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads(file.read_text()) | {"chat_template": template}
    file.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    write_pair(folder)
    return folder


@pytest.fixture
def pair(folders: Path) -> wb.CheckpointPair:
    speaks(folders / "base", OURS)
    speaks(folders / "tuned", THEIRS)
    return wb.load_pair(folders / "base", folders / "tuned")


def retained(pair: wb.CheckpointPair, prompts: PromptSet) -> wb.Result:
    return wb.forgetting.retention(pair, [prompts], texts=Asked(4).texts)


@pytest.mark.parametrize(("whose", "side"), [(None, "base"), ("base", "base"), ("tuned", "tuned")])
def test_an_analysis_runs_what_the_template_makes(whose, side: str, pair: wb.CheckpointPair):
    found = retained(pair, PromptSet("chats", CHATS.prompts, template=whose))
    words = getattr(pair, side).tokenizer()
    plain = tasks.chat(CHATS, words)
    same = (replace(p, id=p.id.removesuffix("-chat")) for p in plain)
    by_hand = PromptSet("chats", tuple(same))
    truth = retained(pair, by_hand)
    pd.testing.assert_frame_equal(found.table, truth.table)
    assert set(found.table["task"]) == {"chats", "pretraining"}
    first, second, *rest = found.provenance.notes
    assert first == f"chats: rendered by the {side} model's chat template."
    assert "chat templates of the base and of the tuned model differ" in second
    assert tuple(rest) == truth.provenance.notes


def test_the_same_template_is_not_said_to_differ(folders: Path, pair: wb.CheckpointPair):
    speaks(folders / "tuned", OURS)
    notes = retained(pair, CHATS).provenance.notes
    assert [n for n in notes if "template" in n] == [
        "chats: rendered by the base model's chat template."
    ]


def test_without_any_template_it_says_what_to_do(folders: Path, pair: wb.CheckpointPair):
    for side in ("base", "tuned"):
        speaks(folders / side, None)
    pair = wb.load_pair(folders / "base", folders / "tuned")
    with pytest.raises(wb.WorkbenchError, match=r'found none; give template="plain"'):
        retained(pair, CHATS)
    plain = retained(pair, PromptSet("chats", CHATS.prompts, template="plain"))
    assert "plain lines" in plain.provenance.notes[0]


def test_an_adapter_brings_its_own_template(folders: Path, pair: wb.CheckpointPair, tmp_path: Path):
    model = pair.base.load()
    lora = adapter(model, tmp_path / "lora")
    own = "{% for m in messages %} {{ m.content }}{% endfor %} !"
    (lora / "chat_template.jinja").write_text(own)
    other = wb.load_pair(folders / "base", lora)
    given = {"pair": other, "prompts": PromptSet("chats", CHATS.prompts, template="tuned")}
    notes = rendered(given)
    assert given["prompts"][1].prompt == " the cup is !"
    assert "tuned" in notes[0]
    shutil.rmtree(tmp_path / "lora")


def test_sets_are_found_wherever_they_stand(pair: wb.CheckpointPair):
    family = wb.Family(pair.base, {"one": pair.tuned})
    skill = Skill("one", CHATS, None)  # pyright: ignore[reportArgumentType]
    plain = Asked(3).prompts
    given = {"family": family, "skills": [skill], "others": (plain, CHATS), "named": {"a": CHATS}}
    notes = rendered(given)
    (made,) = given["skills"]
    assert isinstance(made, Skill)
    told = tasks.chat(CHATS, pair.base.tokenizer())
    for one in (made.task, given["others"][1], given["named"]["a"]):
        assert [p.prompt for p in one] == [p.prompt for p in told]
    assert given["others"][0] is plain
    assert len(notes) == 2
    before = {"pair": pair, "prompts": plain, "sites": ["a"]}
    assert rendered(dict(before)) == ()
    assert noted(plain, ("a",)) is plain


def test_training_sees_what_the_template_makes(pair: wb.CheckpointPair):
    words = pair.base.tokenizer()
    for loss in ("sequence", "answer"):
        assert prepare(words, CHATS, loss, 64) == prepare(words, tasks.chat(CHATS, words), loss, 64)
    (one, *_) = prepare(words, CHATS, "answer", 64)
    assert one.ids[one.start :] == words("blue")["input_ids"][-1:]


def test_a_study_tells_the_first_prompt_as_it_is_run(folders: Path, pair: wb.CheckpointPair):
    other = shutil.copytree(folders / "tuned", folders / "other")
    family = wb.load_family(folders / "base", {"one": folders / "tuned", "two": other})
    (told,) = Study(family, task=CHATS).first_prompts()
    assert told.replace("|", "").startswith("chats: ")
    assert "it" in told
    asked = PromptSet("chats", CHATS.prompts, template="tuned")
    assert "so" in Study(family, task=asked).first_prompts()[0]
    speaks(other, "{% for m in messages %} {{ m.content }}{% endfor %} it")
    with pytest.raises(wb.WorkbenchError, match="found that those of one, two differ"):
        Study(family, task=asked).first_prompts()
