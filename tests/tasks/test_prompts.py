"""Prompt sets survive the disk, and bad files are named by line."""

import json

import pytest

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.tasks.prompts import Prompt, PromptSet


def test_a_saved_set_comes_back_the_same(tmp_path) -> None:
    drawn = tasks.moves(30, seed=4)
    loaded = PromptSet.load(drawn.save(tmp_path / "deep" / "moves.jsonl"))
    assert loaded == drawn
    assert loaded.fingerprint == drawn.fingerprint
    assert loaded.texts[0] == drawn.prompts[0].prompt + drawn.prompts[0].target


def test_fingerprint_sees_content_and_order_but_not_the_name() -> None:
    a, b = Prompt("a", "x", " y"), Prompt("b", "x", " z")
    one = PromptSet("one", (a, b))
    assert one.fingerprint == PromptSet("two", (a, b), seed=9).fingerprint
    assert one.fingerprint != PromptSet("one", (b, a)).fingerprint
    assert one.fingerprint != PromptSet("one", (a, Prompt("b", "x", " w"))).fingerprint


def test_select_keeps_the_order_and_refuses_unknown_names() -> None:
    drawn = tasks.moves(200, seed=0)
    kept = drawn.select(split="test", steps="2")
    expected = [p for p in drawn if p.split == "test" and p.tags["steps"] == "2"]
    assert list(kept) == expected
    assert expected
    with pytest.raises(WorkbenchError, match="colour"):
        drawn.select(colour="red")
    with pytest.raises(WorkbenchError, match="dev"):
        drawn.select(split="dev")  # pyright: ignore


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "found list"),
        (json.dumps({"id": "a", "prompt": "x"}), "missing target, found"),
        (json.dumps({"id": "a", "prompt": "x", "target": "y", "foil": 1}), "close to foils"),
        (json.dumps({"id": "a", "prompt": "x", "target": "y", "split": "dev"}), "split 'dev'"),
        (json.dumps({"id": "a", "prompt": 3, "target": "y"}), "prompt must be text"),
        (json.dumps({"id": "a", "prompt": "x", "target": ""}), "empty target"),
        (json.dumps({"id": "a", "prompt": "x", "target": "y", "foils": "abc"}), "foils must be"),
    ],
)
def test_bad_lines_are_named(tmp_path, line: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    good = [{"name": "s", "seed": 0}, {"id": "q", "prompt": "x", "target": " y"}]
    path.write_text("\n".join([*map(json.dumps, good), line]))
    with pytest.raises(WorkbenchError, match=f"line 3.*{said}"):
        PromptSet.load(path)


def test_missing_file_empty_file_and_repeated_ids_are_said(tmp_path) -> None:
    with pytest.raises(WorkbenchError, match="no file is there"):
        PromptSet.load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(WorkbenchError, match="no prompts"):
        PromptSet.load(tmp_path / "empty.jsonl")
    same = Prompt("a", "x", " y")
    with pytest.raises(WorkbenchError, match="'a' repeats"):
        PromptSet("s", (same, same))


def test_every_bad_line_is_named(tmp_path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "target": " b"}\n"text"\n\n{"prompt": "a"}\n')
    with pytest.raises(WorkbenchError, match=r"line 2: .*found str.* line 4: .*missing"):
        PromptSet.load(path)


def test_plain_lines_and_csv_give_the_same_prompts(tmp_path) -> None:
    lines = [
        {"prompt": "Two, three,", "target": " four", "foils": [" five", " six"]},
        {"prompt": 'He said "no"\nand', "target": " left", "tags": {"kind": "story"}},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "mine.csv").write_text(
        "prompt,target,foils,kind\n"
        '"Two, three,"," four"," five| six",\n'
        '"He said ""no""\nand"," left",,story\n'
    )
    ours, theirs = PromptSet.load(tmp_path / "mine.jsonl"), PromptSet.load(tmp_path / "mine.csv")
    assert ours.name == theirs.name == "mine"
    for a, b in zip(ours, theirs, strict=True):
        assert (a.prompt, a.target, a.foils, a.tags) == (b.prompt, b.target, b.foils, b.tags)


def test_spans_survive_a_file_and_must_lie_in_the_prompt(tmp_path) -> None:
    one = Prompt("a", "Box F holds", " it", spans={"label": (4, 5)})
    back = PromptSet.load(PromptSet("s", (one,)).save(tmp_path / "s.jsonl"))
    assert back.prompts[0] == one
    with pytest.raises(WorkbenchError, match="11 characters"):
        Prompt("a", "Box F holds", " it", spans={"label": (4, 50)})


@pytest.mark.parametrize("scorer", ["choices", tasks.Choices, None])
def test_what_is_no_scorer_is_refused(scorer) -> None:
    """It would be ignored, and the prompts scored as continuations."""
    with pytest.raises(WorkbenchError, match=r"Expected a scorer for 'p', .*tasks.Choices\(\)"):
        PromptSet("p", (Prompt("1", "a", " b", (" c",)),), scorer=scorer)
