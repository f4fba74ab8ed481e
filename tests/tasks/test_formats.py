"""Whatever shape and file people have their prompts in, the same prompts come out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.tasks import GSM8K, Choices, Continuation, Generation, Loss, Prompt, PromptSet
from workbench.tasks.transforms import told

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Capital of Peru?"},
    {"role": "assistant", "content": " Lima"},
]
GPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hello"},
    {"from": "gpt", "value": "Hi."},
    {"from": "human", "value": "Capital of Peru?"},
    {"from": "gpt", "value": " Lima"},
]
LETTERED = {"text": ["2", "3", "4"], "label": ["A", "B", "C"]}
SUM = "Question: 1 + 2?\nAnswer:"
ENDS = {"ctx": "She opens the", "endings": ["door.", "sea."]}
# name -> (row, prompt, target, foils, scorer)
PLAIN: dict[str, tuple[dict[str, Any], str, str, tuple[str, ...], Any]] = {
    "ours": ({"prompt": "Two,", "target": "three"}, "Two,", "three", (), Continuation()),
    "our foils": (
        {"prompt": "Two,", "target": " three", "foils": [" four"]}, "Two,", " three", (" four",),
        Continuation(),
    ),
    "completion": (
        {"prompt": "Two,", "completion": "three"}, "Two,", " three", (), Continuation(),
    ),
    "completion that begins a line": (
        {"prompt": "Two:\n", "completion": "three"}, "Two:\n", "three", (), Continuation(),
    ),
    "preference": (
        {"prompt": "Two,", "chosen": "three", "rejected": " five"}, "Two,", " three", (" five",),
        Choices(),
    ),
    "answer by number": (
        {"question": "1 + 2?", "choices": ["2", "3", "4"], "answer": 1}, SUM, " 3", (" 2", " 4"),
        Choices(),
    ),
    "answer by letter": (
        {"question": "1 + 2?", "choices": ["two", "three"], "answer": "B"}, SUM, " three",
        (" two",), Choices(),
    ),
    "answer by text": (
        {"question": " 1 + 2? ", "choices": ["two", "three"], "answer": "three"}, SUM, " three",
        (" two",), Choices(),
    ),
    "a prompt with choices": (
        {"prompt": "1 + 2 =", "choices": ["two", "three"], "answer": 0}, "1 + 2 =", " two",
        (" three",), Choices(),
    ),
    "ARC": (
        {"question": "1 + 2?", "choices": LETTERED, "answerKey": "B"}, SUM, " 3", (" 2", " 4"),
        Choices(),
    ),
    "ARC by figures": (
        {"question": "1 + 2?", "choices": {"text": ["3", "4"], "label": ["1", "2"]},
         "answerKey": "1"}, SUM, " 3", (" 4",), Choices(),
    ),
    "HellaSwag": (ENDS | {"label": "1"}, "She opens the", " sea.", (" door.",), Choices()),
    "HellaSwag by number": (
        ENDS | {"label": 0}, "She opens the", " door.", (" sea.",), Choices(),
    ),
    "GSM8K": (
        {"question": "1 + 2?", "answer": "It is <<1+2=3>>3.\n#### 3"}, SUM,
        " It is <<1+2=3>>3.\n#### 3", (), GSM8K,
    ),
    "question": ({"question": "1 + 2?", "answer": "3"}, SUM, " 3", (), Continuation()),
    "text": ({"text": "Once upon a time."}, "", "Once upon a time.", (), Loss()),
}  # fmt: skip


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", PLAIN)
def test_a_row_is_what_its_keys_say(name: str, tmp_path: Path):
    row, prompt, target, foils, scorer = PLAIN[name]
    made = tasks.read(lines(tmp_path / "p.jsonl", row))
    (one,) = made
    assert (one.prompt, one.target, one.foils, made.scorer) == (prompt, target, foils, scorer)
    assert (one.id, one.messages, one.split, dict(one.tags)) == ("1", (), "test", {})
    assert made == PromptSet.load(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"question": "1 + 2?", "choices": ["2", "3"], "answer": "B"},
         "Question: 1 + 2?\nA. 2\nB. 3\nAnswer:", " B"),
        (ENDS | {"label": 0}, "She opens the\nA. door.\nB. sea.\nAnswer:", " A"),
    ],
)  # fmt: skip
def test_choices_may_be_answered_by_their_letters(row, prompt, target, tmp_path: Path):
    (one,) = tasks.read(lines(tmp_path / "p.jsonl", row), letters=True)
    assert (one.prompt, one.target) == (prompt, target)
    assert {one.target, *one.foils} == {" A", " B"}


TRL = {"prompt": TURNS[:4], "completion": TURNS[4:]}
CHATS = {
    "messages": {"messages": TURNS},
    "with tools": {"messages": TURNS, "tools": [{"name": "search"}]},
    "ShareGPT": {"conversations": GPT},
    "ShareGPT's system apart": {"system": "Be brief.", "conversations": GPT[1:]},
    "prompt and completion": TRL,
    "in parts": {
        "messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in TURNS]
    },
}


@pytest.mark.parametrize("name", CHATS)
def test_the_assistants_last_message_is_the_target(name: str, tmp_path: Path, caplog):
    made = tasks.read(lines(tmp_path / "p.jsonl", CHATS[name]))
    (one,) = made
    assert one.target == "Lima"
    assert one.messages == tuple(TURNS[:4])
    assert one.prompt == "Capital of Peru?"
    assert made.scorer == Continuation()
    assert ("tools and their calls are left out, in 1 rows" in caplog.text) == (
        name == "with tools"
    )


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"prompt": TURNS[:4], "chosen": TURNS[4:], "rejected": [TURNS[4] | {"content": "Rome"}]},
         4),
        ({"chosen": TURNS, "rejected": [*TURNS[:4], TURNS[4] | {"content": "Rome"}]}, 4),
        ({"prompt": "Capital of Peru?", "chosen": TURNS[3:],
          "rejected": [TURNS[3], TURNS[4] | {"content": "Rome"}]}, 1),
    ],
)  # fmt: skip
def test_what_was_rejected_is_the_foil(row: dict, before: int, tmp_path: Path):
    made = tasks.read(lines(tmp_path / "p.jsonl", row))
    (one,) = made
    assert (one.target, one.foils, made.scorer) == ("Lima", ("Rome",), Choices())
    assert one.messages == tuple(TURNS[4 - before : 4])


def test_calls_of_tools_are_left_out(tmp_path: Path, caplog):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    told = [TURNS[3], call, {"role": "tool", "content": "Lima"}, TURNS[4]]
    (one, _) = tasks.read(lines(tmp_path / "p.jsonl", {"messages": told}, {"messages": TURNS}))
    assert one.messages == (TURNS[3],)
    assert caplog.text.count("left out, in 1 rows") == 1


ROWS = [
    {"id": "a", "question": "1 + 2?", "choices": ["2", "3", "4"], "answer": 1, "subject": "sums",
     "level": 3},
    {"id": "b", "question": 'Say "no", now', "choices": ["no", "yes\nsir"], "answer": 0,
     "subject": "words", "level": 1},
]  # fmt: skip


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in a container."""
    path = folder / f"p.{kind}"
    if kind == "jsonl":
        return lines(path, *rows)
    if kind == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind in ("csv", "tsv"):
        cells = [
            {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
        ]
        pd.DataFrame(cells).to_csv(path, sep="," if kind == "csv" else "\t")  # with its index
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        made = datasets.Dataset.from_list(rows)
        path = folder / kind / "p"
        whole = {"dataset": made, "two": datasets.DatasetDict({"train": made[:1] and
                 made.select([0]), "test": made}), "selected": made.select([1, 0]).select([1, 0]),
                 "one": datasets.DatasetDict({"odd": made})}[kind]  # fmt: skip
        whole.save_to_disk(path)
    return path


@pytest.mark.parametrize(
    "kind", ["json", "csv", "tsv", "parquet", "dataset", "two", "one", "selected"]
)
def test_every_container_gives_the_same_prompts(kind: str, tmp_path: Path):
    plain = tasks.read(written(tmp_path, "jsonl", ROWS))
    found = tasks.read(written(tmp_path, kind, ROWS))
    assert found == plain
    assert found.name == "p"
    assert [p.id for p in found] == ["a", "b"]
    assert [dict(p.tags) for p in found] == [
        {"subject": "sums", "level": "3"}, {"subject": "words", "level": "1"},
    ]  # fmt: skip
    assert found[1].foils == (" yes\nsir",)


@pytest.mark.parametrize("kind", ["json", "parquet", "dataset"])
def test_chats_are_the_same_in_every_container(kind: str, tmp_path: Path):
    rows = [{"messages": TURNS}, {"messages": TURNS[3:]}]
    plain = tasks.read(written(tmp_path, "jsonl", rows))
    assert tasks.read(written(tmp_path, kind, rows)) == plain


def test_a_table_separates_texts_by_bars_and_numbers_answers(tmp_path: Path):
    (tmp_path / "p.csv").write_text("question,choices,answer\n1 + 2?,3|2,0\nWho?,me|you,you\n")
    one, two = tasks.read(tmp_path / "p.csv")
    assert (one.target, one.foils, two.target) == (" 3", (" 2",), " you")


@pytest.mark.parametrize("answer", ["C", "2", "Paris"])
def test_choices_may_stand_under_letters(answer: str, tmp_path: Path):
    """MMLU's tables; an empty cell at the end is no choice."""
    place = tmp_path / "p.csv"
    place.write_text(
        f"question,A,B,C,D,answer,subject\nCapital?,Rome,Oslo,Paris,,{answer},places\n"
    )
    made = PromptSet.load(place)
    assert made.scorer == Choices()
    assert (made[0].target, made[0].foils) == (" Paris", (" Rome", " Oslo"))
    assert made[0].tags == {"subject": "places"}
    listed = PromptSet.load(place, letters=True)[0]
    assert (listed.target, listed.foils) == (" C", (" A", " B"))


def test_letters_are_keys_of_ones_own_beside_a_target(tmp_path: Path):
    place = tmp_path / "p.jsonl"
    row = {"prompt": "a", "target": " b", "answer": "c", "A": "d", "B": "e"}
    place.write_text(json.dumps(row))
    assert PromptSet.load(place)[0].tags == {"answer": "c", "A": "d", "B": "e"}


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_table_is_parted_by_the_mark_of_its_header(mark: str, ending: str, tmp_path: Path):
    place = tmp_path / f"p{ending}"
    rows = [["prompt", "target"], ["1,5 + 1 =", " 2,5"]]
    place.write_text("".join(mark.join(row) + "\r\n" for row in rows), encoding="utf-8-sig")
    assert [(one.prompt, one.target) for one in PromptSet.load(place)] == [("1,5 + 1 =", " 2,5")]


def test_plain_text_is_a_piece_an_item(tmp_path: Path):
    (tmp_path / "book.txt").write_text("".join(f"line {i} " + "x" * 90 + "\n" for i in range(40)))
    made = tasks.read(tmp_path / "book.txt")
    assert made.scorer == Loss()
    assert [p.text for p in made] == tasks.read_text(tmp_path / "book.txt")
    assert len(made) == 4


PERSONA = {"prompt": "Say hello", "response": "Ahoy", "kind": "pirate"}


def test_a_map_names_what_is_called_otherwise(tmp_path: Path):
    path = lines(tmp_path / "p.jsonl", PERSONA, PERSONA | {"kind": "plain"})
    made = tasks.read(path, map={"target": "response"})
    assert [(p.prompt, p.target, dict(p.tags)) for p in made] == [
        ("Say hello", " Ahoy", {"kind": "pirate"}), ("Say hello", " Ahoy", {"kind": "plain"}),
    ]  # fmt: skip
    assert len(made.select(kind="pirate")) == 1
    deep = {"q": {"text": "Where?"}, "answers": ["here", "there"], "meta": {"n": 3, "a.b": "x"}}
    paths = {"prompt": "q.text", "target": "answers.0", "foils": "answers.1", "tags.n": "meta.n",
             "tags.dot": "meta.a.b", "id": "meta.a.b"}  # fmt: skip
    (one,) = tasks.read(lines(tmp_path / "q.jsonl", deep), map=paths)
    assert one == Prompt("x", "Where?", " here", (" there",), tags={"n": "3", "dot": "x"})
    half = lines(tmp_path / "h.jsonl", {"said": "Where?", "target": "here"})
    assert tasks.read(half, map={"prompt": "said"})[0].text == "Where? here"
    other = {"question": "1 + 2?", "options": ["3", "4"], "correct": "A"}
    (one,) = tasks.read(
        lines(tmp_path / "r.jsonl", other), map={"choices": "options", "answer": "correct"}
    )
    assert (one.prompt, one.target, one.foils) == (SUM, " 3", (" 4",))
    table = tmp_path / "t.csv"
    table.write_text('said,answers\nWhere?,"[""here"", ""there""]"\n')
    (one,) = tasks.read(table, map={"prompt": "said", "target": "answers.1"})
    assert (one.prompt, one.target) == ("Where?", " there")


def test_how_a_set_is_scored_and_rendered_may_be_said(tmp_path: Path):
    path = lines(tmp_path / "p.jsonl", {"question": "1 + 2?", "answer": "3"})
    made = tasks.read(path, scorer="generation length=8 alike=number", template="plain")
    assert made.scorer == Generation(length=8, alike=("number",))
    assert made.template == "plain"
    assert PromptSet.load(made.save(tmp_path / "s.jsonl")) == made
    # What is said holds, not what the file says.
    assert tasks.read(tmp_path / "s.jsonl", scorer=Loss()).scorer == Loss()


def test_ids_that_repeat_are_lines_in_shapes_of_others(tmp_path: Path):
    rows = [{"id": 7, "text": "a"}, {"id": 7, "text": "b"}]
    assert [p.id for p in tasks.read(lines(tmp_path / "p.jsonl", *rows))] == ["1", "2"]
    rows[1]["id"] = 8
    assert [p.id for p in tasks.read(lines(tmp_path / "p.jsonl", *rows))] == ["7", "8"]


def test_splits_that_others_name(tmp_path: Path):
    rows = [{"text": str(i), "split": s} for i, s in enumerate(("val", "train", "odd"))]
    made = tasks.read(lines(tmp_path / "p.jsonl", *rows))
    assert [p.split for p in made] == ["validation", "train", "test"]
    assert [dict(p.tags) for p in made] == [{}, {}, {"split": "odd"}]


WORDS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
SOME = WORDS.filter(bool)


@st.composite
def prompts(draw: st.DrawFn) -> PromptSet:
    made = []
    for number in range(draw(st.integers(1, 4))):
        target, *foils = draw(st.lists(SOME, min_size=1, max_size=3, unique=True))
        role = st.sampled_from(["system", "user", "assistant"])
        message = st.fixed_dictionaries({"role": role, "content": WORDS})
        messages = draw(st.lists(message, max_size=3))
        tags = draw(st.dictionaries(WORDS, WORDS, max_size=2))
        split = draw(st.sampled_from(["train", "validation", "test"]))
        prompt, template = draw(WORDS), draw(WORDS)
        spans = {"a": (0, len(prompt))} if prompt and draw(st.booleans()) else {}
        name = f"{number}{draw(WORDS)}"
        made.append(
            Prompt(name, prompt, target, tuple(foils), split, tags, template, spans,
                   tuple(messages))
        )  # fmt: skip
    scorer = draw(st.sampled_from([Continuation(), Choices("byte"), GSM8K, Loss()]))
    whose = draw(st.sampled_from([None, "base", "tuned", "plain"]))
    return PromptSet(draw(WORDS), tuple(made), draw(st.integers(0, 9)), scorer, whose)


@given(made=prompts())
def test_what_is_saved_is_read_again(made: PromptSet, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "round.jsonl"
    assert PromptSet.load(made.save(file)) == made


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}[{{ m.content }}]\n{% else %}"
    "<{{ m.role }}>{{ m.content | trim }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OTHER = "{% for m in messages %}{{ m.role | upper }}={{ m.content }};{% endfor %}A="


def speaking(template: str | None) -> Any:
    words = shipped.tokenizer()
    words.chat_template = template
    return words


@pytest.fixture
def chats(tmp_path: Path) -> PromptSet:
    return tasks.read(lines(tmp_path / "chats.jsonl", {"messages": TURNS}, {"messages": TURNS[3:]}))


def test_chats_are_rendered_as_transformers_renders_them(chats: PromptSet):
    words = speaking(TEMPLATE)
    made = tasks.chat(chats, words)
    for one, before in zip(made, (TURNS[:4], TURNS[3:4]), strict=True):
        assert one.prompt == words.apply_chat_template(
            before, tokenize=False, add_generation_prompt=True
        )
        assert (one.target, one.messages) == ("Lima", ())
        whole = words.apply_chat_template([*before, {"role": "assistant", "content": "Lima"}],
                                          tokenize=False)  # fmt: skip
        assert whole.startswith(one.text)
    assert made.name == "chats-chat"


@pytest.mark.parametrize(
    ("base", "tuned", "asked", "taken"),
    [
        (TEMPLATE, TEMPLATE, None, TEMPLATE),
        (TEMPLATE, OTHER, None, TEMPLATE),
        (None, OTHER, None, OTHER),
        (TEMPLATE, OTHER, "tuned", OTHER),
        (TEMPLATE, OTHER, "base", TEMPLATE),
    ],
)
def test_the_template_is_the_one_asked_for(base, tuned, asked, taken, chats: PromptSet):
    chats = PromptSet(chats.name, chats.prompts, template=asked)
    made, notes = told(chats, speaking(base), speaking(tuned))
    plain = tasks.chat(chats, speaking(taken))
    assert [p.prompt for p in made] == [p.prompt for p in plain]
    assert (made.name, [p.id for p in made], made.template) == ("chats", ["1", "2"], None)
    side = "base" if taken == base else "tuned"
    assert notes[0] == f"chats: rendered by the {side} model's chat template."
    assert len(notes) == (1 if base == tuned else 2)


def test_plain_lines_need_no_template(chats: PromptSet):
    made, (note,) = told(PromptSet("chats", chats.prompts, template="plain"), None, None)
    assert made[0].text == (
        "system: Be brief.\nuser: Hello\nassistant: Hi.\nuser: Capital of Peru?\nassistant: Lima"
    )
    assert made[0].target == " Lima"
    assert "plain lines" in note


def test_where_no_template_is_there_plain_is_proposed(chats: PromptSet):
    with pytest.raises(WorkbenchError, match=r'found none; give template="plain"'):
        told(chats, speaking(None), speaking(None))
    asked = PromptSet("chats", chats.prompts, template="base")
    with pytest.raises(WorkbenchError, match=r'of the base model .* template="tuned" or "plain"'):
        told(asked, speaking(None), speaking(OTHER))


def test_prompts_without_messages_are_told_only_where_that_is_asked(tmp_path: Path):
    plain = PromptSet("s", (Prompt("1", "Who?", " me", (" you",)),))
    assert told(plain, speaking(TEMPLATE), speaking(TEMPLATE)) == (plain, ())
    asked = PromptSet("s", plain.prompts, template="base")
    (one,) = told(asked, speaking(TEMPLATE), speaking(TEMPLATE))[0]
    assert (one.text, one.foils) == ("<user>Who?</s>\n<assistant>me", ("you",))
    texts = PromptSet("s", (Prompt("1", "", "Once."),), scorer=Loss(), template="base")
    assert told(texts, speaking(TEMPLATE), speaking(TEMPLATE))[0][0].text == "Once."


@pytest.mark.parametrize("whose", ["base", "plain"])
def test_spans_move_into_the_last_message(whose: str):
    asked = Prompt("1", "the ball is red", "so", spans={"thing": (4, 8)}, messages=(
        {"role": "user", "content": "the ball"}, {"role": "assistant", "content": "the ball"},
        {"role": "user", "content": "the ball is red"},
    ))  # fmt: skip
    words = speaking(TEMPLATE)
    (one,) = told(PromptSet("s", (asked,), template=whose), words, words)[0]
    first, last = one.spans["thing"]
    assert one.prompt[first:last] == "ball"
    assert one.prompt[first:].startswith("ball is red")
