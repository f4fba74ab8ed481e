"""How files of prompts are read can be said of every command that reads some, and holds for all of
its files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest

import workbench as wb
from tests.cli.test_verbs import EVERY, asked_for, options, typed
from tests.terminal import workbench
from workbench.cli.options import texts
from workbench.cli.reading import OPTIONS, mapped
from workbench.demo import FAMILY
from workbench.errors import WorkbenchError
from workbench.tasks import GSM8K, Choices, Loss

TYPED = {f"--{name}" for name in OPTIONS}
PERSONA = [{"prompt": "Say hello", "response": f"Ahoy {i}", "kind": "pirate"} for i in range(4)]
SUMS = [{"question": f"{i} + 1?", "choices": [str(i), str(i + 1)], "answer": 1} for i in range(4)]


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_command_that_reads_prompts_asks_how():
    for one in EVERY:
        sets = any("PromptSet" in p.kind for p in one.parameters)
        assert (TYPED & options(*typed(one))) == (TYPED if sets else set()), one.module
    for words in (("compare",), ("lab", "train"), ("skills", "compose")):
        assert options(*words) >= TYPED
    assert not TYPED & options("check")


def test_what_is_said_holds_for_every_file(monkeypatch, tmp_path: Path):
    ask = partial(asked_for, monkeypatch, "forgetting", "interpolate")
    one, two = (lines(tmp_path / f"{n}.jsonl", PERSONA) for n in "ab")
    files = ("--prompts", one, "--others", two)
    found = ask(*files, "--map", "target=response,tags.who=kind", "--scorer", "gsm8k",
                "--template", "tuned")  # fmt: skip
    for made in (found["prompts"], *found["others"]):
        assert [p.target for p in made] == [" Ahoy 0", " Ahoy 1", " Ahoy 2", " Ahoy 3"]
        assert (made.scorer, made.template) == (GSM8K, "tuned")
        assert dict(made[0].tags) == {"who": "pirate"}
    sums = lines(tmp_path / "sums.jsonl", SUMS)
    plain, lettered = (ask("--prompts", sums, *more)["prompts"] for more in ((), ("--letters",)))
    assert [plain[0].target, lettered[0].target] == [" 1", " B"]
    assert plain.scorer == Choices()
    # Of one command it does not go on to the next.
    assert ask("--prompts", sums, "--scorer", "loss")["prompts"].scorer == Loss()
    assert ask("--prompts", sums)["prompts"].scorer == Choices()


def test_a_folder_of_datasets_is_a_file_of_prompts(monkeypatch, tmp_path: Path):
    datasets.Dataset.from_list(SUMS).save_to_disk(tmp_path / "sums")
    ask = partial(asked_for, monkeypatch, "tuco", "contribution")
    made = ask("--prompts", str(tmp_path / "sums"))["prompts"]
    assert [p.target for p in made["sums"]] == [" 1", " 2", " 3", " 4"]
    (tmp_path / "said.txt").write_text("one\ntwo\n")  # of groups the lines count, as ever
    assert ask("--prompts", str(tmp_path / "said.txt"))["prompts"] == {"said": ["one", "two"]}


def test_a_map_is_typed_with_commas_or_repeated():
    assert mapped(["prompt=question, target=answers.0"]) == {
        "prompt": "question", "target": "answers.0",
    }  # fmt: skip
    assert mapped(["prompt=a", "tags.x=b=c"]) == {"prompt": "a", "tags.x": "b=c"}
    assert mapped(None) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--map", "response"], "Expected --map FIELD=KEY,... with each field once, found 're"),
        (["--map", "target=a,target=b"], "with each field once, found 'target=b'"),
        (["--map", "answr=response"], "found 'answr'; did you mean answer?"),
        (["--scorer", "generation extract=("], "extract '(' is not a regular expression"),
        (["--scorer", "best"], "Expected a scorer of continuation, choices"),
        (["--template", "mine", "--map", "target=response"], "Expected the template base, tuned"),
        ([], "give map={'target': 'response'} (--map target=response) if that is the right one."),
    ],
)
def test_what_cannot_be_said_ends_in_a_sentence(more: list[str], said: str, tmp_path: Path):
    persona = lines(tmp_path / "p.jsonl", PERSONA)
    done = workbench("lab", "train", "B", "--prompts", persona, "--out", tmp_path / "m", *more)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_a_persona_trains_without_a_script(monkeypatch, tmp_path: Path):
    given: dict[str, Any] = {}

    def train(base: str, recipe: Any, texts: Any, out: Path, **_: Any) -> Path:
        given.update(texts=texts, recipe=recipe)
        return out

    monkeypatch.setattr(wb.lab, "train", train)
    persona = lines(tmp_path / "p.jsonl", PERSONA)
    done = workbench("lab", "train", "B", "--prompts", persona, "--out", str(tmp_path / "m"),
                     "--map", "target=response", "--loss", "answer")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [p.text for p in given["texts"]] == [f"Say hello Ahoy {i}" for i in range(4)]
    assert given["texts"].select(kind="pirate").prompts == given["texts"].prompts


def test_lost_items_are_printed_with_both_answers(tmp_path: Path):
    """--show: as many as are asked for of each task and way, and none without it."""
    file = tmp_path / "facts.jsonl"
    wb.tasks.facts(40, seed=3).save(file)
    asked = ("forget", "retention", FAMILY / "base", FAMILY / "lora-r1", "--prompts", file)
    out = tmp_path / "out"
    done = workbench(*map(str, (*asked, "--show", "2", "--out", out)))
    assert done.returncode == 0, done.stderr
    items = wb.Result.load(out).metric("item")
    lost = items[items["value"] < items["baseline"]]
    assert len(lost) > 2
    assert f"{len(lost)} of {len(items)} items lost, the first 2" in done.stdout
    assert done.stdout.count("  expected ") == 2
    for row in lost.head(2).itertuples():
        assert f"expected {row.expected.strip()}\n" in done.stdout
        assert f"tuned    {row.said.strip()}\n" in done.stdout
    assert "items lost" not in workbench(*map(str, (*asked, "--show", "0"))).stdout


def test_texts_that_were_written_are_printed():
    pair = (FAMILY / "base", FAMILY / "lora-r1")
    asked = ("behaviour", "generate", *pair, "--n", "2", "--length", "4", "--show", "1",
             "--arms", "base,tuned")  # fmt: skip
    found = workbench(*map(str, asked)).stdout
    blocks = dict(part.split(":\n", 1) for part in found.split("\n\n")[1:] if ":\n" in part)
    truth = wb.behaviour.generate(wb.load_pair(*pair), arms=("base", "tuned"), n=2, length=4)
    for arm, own in truth.metric("text").groupby("arm"):
        assert blocks[str(arm)].splitlines()[0].split() == own["text"].iloc[0].split()


def test_texts_may_stand_in_a_file_of_rows(tmp_path: Path):
    """As they are, without the marks of JSON around them, which no model should be scored on."""
    place = tmp_path / "texts.jsonl"
    place.write_text("".join(json.dumps({"text": f"one {i}"}) + "\n" for i in range(70)))
    assert texts(place) == [f"one {i}" for i in range(64)]
    plain = tmp_path / "texts.txt"
    plain.write_text("one\n")
    assert texts(plain) == ["one\n"]
    assert texts(None) is None
    place.write_text(json.dumps({"prompt": "a", "target": " b"}))
    with pytest.raises(WorkbenchError, match=r"Expected plain texts in .*, found prompts"):
        texts(place)
