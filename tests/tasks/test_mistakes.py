"""The input mistakes that a new user makes, each with the whole sentence that comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.tasks.transforms import told

SUM = {"question": "1 + 1?", "choices": ["one", "two"], "answer": 1}
ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Yo"}
GOOD = {"prompt": "a", "target": " b"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# what was done -> (file, content, options, sentence without the folder)
MISTAKES: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "a key by another name": (
        "p.jsonl", lines(*[{"prompt": "a", "response": "b", "kind": "x"}] * 3), {},
        "p.jsonl: line 1 and 2 more: missing target, found the keys prompt, response, kind; give "
        "map={'target': 'response'} (--map target=response) if that is the right one.",
    ),
    "a key misspelled": (
        "p.jsonl", lines({"prompt": "a", "targets": " b"}), {},
        "p.jsonl: line 1: missing target, found the keys prompt, targets; give "
        "map={'target': 'targets'} (--map target=targets) if that is the right one.",
    ),
    "a further key misspelled": (
        "p.jsonl", lines(GOOD | {"foil": " c"}), {},
        "p.jsonl: line 1: foil is not a known key, but close to foils; rename it, or give "
        "map={'foils': 'foil'} (--map foils=foil).",
    ),
    "choices by another name": (
        "p.jsonl", lines({"question": "1 + 1?", "options": ["one", "two"], "answer": 1}), {},
        "p.jsonl: line 1: options is not a known key, but close to choices; rename it, or give "
        "map={'choices': 'options'} (--map choices=options).",
    ),
    "no target": (
        "p.jsonl", lines({"prompt": "a"}), {},
        "p.jsonl: line 1: missing target, found the keys prompt; name the keys that hold them by "
        "map={'target': 'KEY'} (--map target=KEY).",
    ),
    "keys that nobody knows": (
        "p.jsonl", lines({"a": "b", "c": "d"}), {},
        "p.jsonl: line 1: missing prompt and target (or messages, question and answer, or text), "
        "found the keys a, c; name the keys that hold them by map={'prompt': 'KEY', 'target': "
        "'KEY'} (--map prompt=KEY,target=KEY).",
    ),
    "a letter beyond the choices": (
        "p.jsonl", lines(SUM, SUM | {"answer": "E"}), {},
        "p.jsonl: line 2: answer is E, but the 2 choices are A to B.",
    ),
    "a number counted from 1": (
        "p.jsonl", lines(SUM | {"answer": 2}), {},
        "p.jsonl: line 1: answer is 2, but the 2 choices are numbered 0 to 1.",
    ),
    "a number as text": (
        "p.jsonl", lines(SUM | {"answer": "1"}), {},
        "p.jsonl: line 1: answer is the text '1'; the 2 choices are numbered 0 to 1, given as a "
        "number: 1.",
    ),
    "a letter without a choice": (
        "p.csv", b"question,A,B,C,answer\n1 + 1?,one,,two,C\n", {},
        "p.csv: line 2: there are choices under A, C, but none under B; give one to each letter.",
    ),
    "an answer that is no choice": (
        "p.jsonl", lines(SUM | {"answer": "three"}), {},
        "p.jsonl: line 1: answer 'three' is none of the choices one, two.",
    ),
    "one choice": (
        "p.jsonl", lines(SUM | {"choices": ["one"], "answer": 0}), {},
        "p.jsonl: line 1: choices must be 2 to 26 texts, found 1.",
    ),
    "choices in one text": (
        "p.jsonl", lines(SUM | {"choices": "one, two"}), {},
        "p.jsonl: line 1: choices must be a list of texts, not 'one, two'.",
    ),
    "a choice twice": (
        "p.jsonl", lines(SUM | {"choices": ["two", "two"]}), {},
        "p.jsonl: line 1: the foil ' two' is the target; each choice must be another text.",
    ),
    "a foil that is the target": (
        "p.jsonl", lines(GOOD | {"foils": [" c", " b"]}), {},
        "p.jsonl: line 1: the foil ' b' is the target; each choice must be another text.",
    ),
    "nothing in it": (
        "p.jsonl", b"\n", {}, "p.jsonl holds no prompts; give one JSON object a line.",
    ),
    "JSON for lines": (
        "p.jsonl", json.dumps([GOOD, GOOD], indent=1).encode(), {},
        "p.jsonl: line 1: expected one object a line, found a JSON list; name the file .json.",
    ),
    "JSON in one line": (
        "p.jsonl", json.dumps([GOOD, GOOD]).encode(), {},
        "p.jsonl: line 1: expected one object a line, found a JSON list; name the file .json.",
    ),
    "lines for JSON": (
        "p.json", lines(GOOD, GOOD), {},
        "p.json: line 1: not JSON (Extra data: line 2 column 1 (char 32)); fix it; "
        "one object a line is read from a file that ends in .jsonl.",
    ),
    "a line that is not JSON": (
        "p.jsonl", lines(GOOD) + b"{'prompt': 'a'}\n", {},
        "p.jsonl: line 2: not JSON (Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1)); fix or remove the line.",
    ),
    "a table without a header": (
        "p.csv", b"What is it?,four\nWho?,me\n", {},
        "p.csv: line 2: missing prompt and target (or messages, question and answer, or text), "
        "found the keys What is it?, four; the first line of a table must name its columns.",
    ),
    "a comma in a cell": (
        "p.csv", b"prompt,target\nTwo, three,four\n", {}, "p.csv: line 2: expected 2 cells.",
    ),
    "a list as Python prints it": (
        "p.csv", b"question,choices,answer\n1 + 1?,\"['one', 'two']\",1\n", {},
        "p.csv: line 2: the cell choices holds one text; separate them by |, or give a list in "
        "JSON.",
    ),
    "UTF-16": (
        "p.jsonl", lines(GOOD).decode().encode("utf-16"), {},
        "p.jsonl is not UTF-8 text ('utf-8' codec can't decode byte 0xff in position 0: invalid "
        "start byte); give prompts as UTF-8 text.",
    ),
    "Latin-1": (
        "p.csv", "prompt,target\nWo?,über\n".encode("latin-1"), {},
        "p.csv is not UTF-8 text ('utf-8' codec can't decode byte 0xfc in position 18: invalid "
        "start byte); give prompts as UTF-8 text.",
    ),
    "an id twice": (
        "p.jsonl", lines(*[GOOD | {"id": name} for name in "xyx"]), {},
        "p.jsonl: lines 1 and 3: the id 'x' occurs in both; ids must be unique.",
    ),
    "an empty target": (
        "p.jsonl", lines(GOOD | {"target": ""}), {},
        "p.jsonl: line 1: Prompt '1' has an empty target; give the answer.",
    ),
    "rows of two kinds": (
        "p.jsonl", lines(GOOD, GOOD, SUM), {},
        "p.jsonl: line 3: this row is of question, choices and answer and line 1 of prompt and "
        "target; put each kind into a separate file.",
    ),
    "a conversation without an answer": (
        "p.jsonl", lines({"messages": [ASKED]}), {},
        "p.jsonl: line 1: there is no message of the assistant, which would be the answer.",
    ),
    "a conversation that ends with the user": (
        "p.jsonl", lines({"messages": [ASKED, SAID, ASKED]}), {},
        "p.jsonl: line 1: the last message is the user's, but the last must be the "
        "assistant's, which is the answer.",
    ),
    "an answer to nothing": (
        "p.jsonl", lines({"messages": [SAID]}), {},
        "p.jsonl: line 1: there is no message before the assistant's answer.",
    ),
    "a role that nobody has": (
        "p.jsonl", lines({"messages": [ASKED | {"role": "narrator"}, SAID]}), {},
        "p.jsonl: line 1: message 1 has the role 'narrator'; use system, user or assistant.",
    ),
    "an image": (
        "p.jsonl", lines({"messages": [ASKED | {"content": [{"type": "image"}]}, SAID]}), {},
        "p.jsonl: line 1: message 1 needs a content of text alone.",
    ),
    "a path that is not there": (
        "p.jsonl", lines({"prompt": "a", "answers": ["x"]}), {"map": {"target": "answers.1"}},
        "p.jsonl: line 1: there is no answers.1 for target: before 1 there is a list of 1; the "
        "keys of the row are prompt, answers.",
    ),
    "a key that is not there": (
        "p.jsonl", lines({"prompt": "a", "said": "x"}), {"map": {"target": "answer"}},
        "p.jsonl: line 1: there is no answer for target; the keys of the row are prompt, said.",
    ),
    "a map of no field": (
        "p.jsonl", lines({"prompt": "a", "said": "x"}), {"map": {"targt": "said"}},
        "Expected map to name fields of a prompt, found 'targt'; did you mean target?",
    ),
    "a pickle": (
        "p.pkl", b"\x80\x04.", {},
        "Expected a file of prompts that ends in .jsonl, .json, .csv, .tsv, .parquet, .txt, found "
        "p.pkl; save its rows as one of these.",
    ),
    "half a table": (
        "p.parquet", b"PAR1", {},
        "Expected a table in p.parquet, which cannot be read (Parquet file size is 4 bytes, "
        "smaller than the minimum file footer (8 bytes)); save it again, or as .jsonl.",
    ),
    "a pattern that is none": (
        "p.jsonl", lines(SUM), {"scorer": "generation extract=("},
        "extract '(' is not a regular expression (missing ), unterminated subpattern "
        "at position 0).",
    ),
    "a scorer that is none": (
        "p.jsonl", lines(SUM), {"scorer": "accuracy"},
        "Expected a scorer of continuation, choices, generation, loss or gsm8k, found 'accuracy'.",
    ),
    "a template by its text": (
        "p.jsonl", lines(GOOD), {"template": "chatml"},
        "Expected the template base, tuned, plain, found 'chatml'.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", MISTAKES)
def test_a_mistake_ends_in_its_sentence(which: str, tmp_path: Path):
    name, content, options, sentence = MISTAKES[which]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkbenchError) as told:
        tasks.read(tmp_path / name, **options)
    assert str(told.value).replace(f"{tmp_path}/", "") == sentence


def test_five_mistakes_are_told_at_once(tmp_path: Path):
    rows = [SUM | {"answer": i} for i in range(2, 9)]
    (tmp_path / "p.jsonl").write_bytes(lines(*rows))
    with pytest.raises(WorkbenchError) as told:
        tasks.read(tmp_path / "p.jsonl")
    said = str(told.value)
    assert said.count("the 2 choices are numbered 0 to 1") == 5
    assert said.endswith("line 5: answer is 6, but the 2 choices are numbered 0 to 1. (and 2 more)")


def test_folders_that_are_no_dataset(tmp_path: Path):
    whole = datasets.Dataset.from_list([SUM])
    datasets.DatasetDict({"train": whole, "extra": whole}).save_to_disk(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    for name, sentence in {
        "two": "Expected the split test or validation in two, found train, extra; give the folder "
        "of one, for example two/train.",
        "empty": "Expected a folder that `datasets` wrote with save_to_disk (state.json or "
        "dataset_dict.json) at empty, found neither; give a file (.jsonl, .json, .csv, .tsv, "
        ".parquet, .txt) or such a folder.",
        "none.jsonl": "Expected prompts (.jsonl, .json, .csv, .tsv, .parquet, .txt, or a folder of "
        "datasets) at none.jsonl; no file is there.",
    }.items():
        with pytest.raises(WorkbenchError) as told:
            tasks.read(tmp_path / name)
        assert str(told.value).replace(f"{tmp_path}/", "") == sentence
    assert tasks.read(tmp_path / "two" / "train")[0].target == " two"


def test_a_template_where_none_is(tmp_path: Path):
    (tmp_path / "p.jsonl").write_bytes(lines({"messages": [ASKED, SAID]}))
    words = shipped.tokenizer()
    with pytest.raises(WorkbenchError) as said:
        told(tasks.read(tmp_path / "p.jsonl", template="tuned"), words, words)
    assert str(said.value) == (
        "Expected a chat template in the tokenizer of the tuned model for 'p', found none; give "
        'template="plain" (--template plain), which writes them as "user: ..." lines.'
    )
