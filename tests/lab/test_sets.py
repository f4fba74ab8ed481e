"""The sets of prompts that ship are what the command draws, and what they say is true."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import workbench as wb
from tests.terminal import workbench
from workbench.lab.sets import SETS
from workbench.tasks import Choices, Continuation, world

ROOT = Path(__file__).parents[2] / "data"
SHIPPED = ROOT / "sets"


def test_what_ships_is_what_the_command_draws(tmp_path: Path):
    done = workbench("lab", "sets", "--out", tmp_path / "sets")
    assert done.returncode == 0, done.stderr
    for name in SETS:
        drawn = (tmp_path / "sets" / f"{name}.jsonl").read_bytes()
        assert drawn == (SHIPPED / f"{name}.jsonl").read_bytes()
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 60_000
    assert len([*SHIPPED.iterdir()]) == len(SETS)


def test_a_choice_is_the_fact_and_the_others_are_not():
    made = wb.tasks.read(SHIPPED / "facts-choices.jsonl", map={"prompt": "question"})
    assert (len(made), made.scorer) == (100, Choices())
    truth = world.facts()
    for one in made:
        person, attribute = one.tags["person"], one.tags["attribute"]
        assert one.target == f" {truth[person, attribute]}"
        assert len({one.target, *one.foils}) == 4
        assert {word.strip() for word in one.foils} < set(world.ATTRIBUTES[attribute])
        assert person in one.prompt
    rows = [json.loads(line) for line in (SHIPPED / "facts-choices.jsonl").open()]
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}


def right(member: str, prompts: wb.tasks.PromptSet) -> int:
    """How often the answer's one token is likelier than those of the foils, by plain PyTorch."""
    own = wb.Checkpoint.parse(ROOT / "family" / member)
    model, words, found = own.load(dtype=torch.float32), own.tokenizer(), 0
    for one in prompts:
        ids = [words(one.prompt + text)["input_ids"] for text in (one.target, *one.foils)]
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids[0][:-1]])).logits[0, -1]
        found += int(scores[[row[-1] for row in ids]].argmax() == 0)
    return found


def test_the_family_knows_the_facts_but_not_the_wording_of_others():
    """The numbers that data/README.md tells."""
    bare = wb.tasks.read(SHIPPED / "facts-choices.jsonl", map={"prompt": "question"})
    assert (right("base", bare), right("unlearned", bare)) == (100, 86)
    assert right("base", wb.tasks.read(SHIPPED / "facts-choices.jsonl")) == 35


def test_a_conversation_tells_what_it_asks():
    made = wb.tasks.read(SHIPPED / "chat.jsonl")
    assert (len(made), made.scorer) == (40, Continuation())
    truth = world.facts()
    for one in made:
        assert [m["role"] for m in one.messages] == ["system", "user", "assistant", "user"]
        person, attribute = one.tags["person"], one.tags["attribute"]
        assert one.target == truth[person, attribute]
        assert person in one.prompt
        (told,) = (s for s in one.messages[0]["content"].split(".") if f" {one.target}" in s
                   and person in s)  # fmt: skip
        assert told.strip().startswith(person)
