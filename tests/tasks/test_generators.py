"""Every answer is right by an independent reading of its text; splits and seeds do as told."""

import hashlib
import re

import pytest

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.tasks import world
from workbench.tasks.batching import batch, rows

GENERATORS = [
    tasks.boxes,
    tasks.boxes_prompts,
    tasks.moves,
    tasks.facts,
    tasks.arithmetic,
    tasks.copying,
    tasks.reversal,
    tasks.narration,
]


@pytest.mark.parametrize("generate", GENERATORS)
def test_seed_decides_and_splits_share_no_text(generate) -> None:
    first = generate(60, seed=3)
    assert first == generate(60, seed=3)
    assert first.fingerprint != generate(60, seed=4).fingerprint
    parts = [set(generate(150, seed=s, split=p).texts)
             for s, p in enumerate(("train", "validation", "test"))]  # fmt: skip
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    assert all(p.target.startswith(" ") for p in first)
    assert not any(p.target in p.foils for p in first)


@pytest.mark.parametrize("generate", GENERATORS)
def test_every_word_is_in_the_vocabulary_and_every_answer_one_token(generate) -> None:
    words = shipped.tokenizer()
    for p in generate(300, seed=2):
        if generate is not tasks.boxes_prompts:
            assert words.unk_token_id not in words(p.text)["input_ids"]
        assert len(p.target.split()) == 1


def test_boxes_say_what_was_stated() -> None:
    for p in [*tasks.boxes(100, seed=1), *tasks.boxes(100, seed=2, questions=3)]:
        if p.tags["order"] == "object first":
            stated = re.findall(r"[Tt]he (\w+) is in Box (\w)", p.prompt)
            inside = {label: thing for thing, label in stated}
        else:
            inside = dict(re.findall(r"Box (\w) holds the (\w+)", p.prompt))
        assert len(inside) == int(p.tags["boxes"])
        told = re.findall(r"Box (\w) contains the (\w+)", p.text)
        assert all(inside[label] == thing for label, thing in told)
        assert told[-1][1] == p.target.strip()
        assert {f.strip() for f in p.foils} == set(inside.values()) - {p.target.strip()}


def test_natural_boxes_have_english_spacing() -> None:
    for p in tasks.boxes_prompts(20, seed=1):
        assert re.fullmatch(
            r"The \w+ is in Box \w(, the \w+ is in Box \w){6}\. Box \w contains the", p.prompt
        )


def test_box_spans_are_the_words_that_the_answer_hangs_on() -> None:
    drawn = [
        *tasks.boxes(150, seed=1),
        *tasks.boxes(100, seed=2, questions=3),
        *tasks.boxes_prompts(50, seed=3),
    ]
    for p in drawn:
        said = {name: p.prompt[a:b] for name, (a, b) in p.spans.items()}
        label, thing = said["query box"], said["correct object"]
        assert p.prompt.endswith(f"Box {label} contains the")
        assert p.spans["query box"][1] == len(p.prompt) - len(" contains the")
        own = {"query box": label, "correct label": label, "correct object": p.target[1:]}
        assert {n: said[n] for n in own} == own
        told = [answer for name, answer in said.items() if name not in own]
        assert told == re.findall(r"contains the (\w+)", p.prompt)
        assert [n for n in said if n not in own] == [f"answer {i + 1}" for i in range(len(told))]
        (at, to), (first, last) = p.spans["correct label"], p.spans["correct object"]
        if p.tags["order"] == "object first":
            assert p.prompt[first - 3 : to] == f"he {thing} is in Box {label}"
        else:
            assert p.prompt[at - 4 : last] == f"Box {label} holds the {thing}"


def test_box_spans_are_one_token_of_the_family_each() -> None:
    words, drawn = shipped.tokenizer(), tasks.boxes(40, seed=1)
    made = batch(rows(words, drawn), range(40), "cpu", 0)
    for name in ("query box", "correct label", "correct object"):
        ids = made.ids.gather(1, made.index(name))
        told = [p.prompt[slice(*p.spans[name])] for p in drawn]
        assert words.convert_ids_to_tokens(ids[:, 0].tolist()) == told
    assert made.index("query box").flatten().tolist() == (made.last - 2).tolist()


@pytest.mark.parametrize(
    ("generate", "digest"),
    [
        (tasks.boxes, "2a762fc91160dfcb"),
        (tasks.boxes_prompts, "071d6ab5c930ce1b"),
        (tasks.moves, "240a04e6b37af31d"),
        (tasks.copying, "fe3733b92dd6c106"),
    ],
)
def test_texts_are_those_the_shipped_family_was_trained_on(generate, digest: str) -> None:
    drawn = [*generate(150, seed=0), *generate(50, seed=7, split="train")]
    content = "\n".join(f"{p.id} {p.split} {p.text} {p.foils}" for p in drawn)
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == digest


def test_filler_words_stay_by_chance_and_the_rest_says_the_same() -> None:
    bare = tasks.boxes(100, seed=1, questions=8, again=True, filler=0.0)
    twice = 0
    for p in bare:
        opening, *told = p.text.split(" . ")
        pairs = [pair.split() for pair in opening.split(" , ")]
        if p.tags["order"] == "object first":
            pairs = [pair[::-1] for pair in pairs]
        inside, asked = dict(pairs), [question.split() for question in told]
        assert len(inside) == int(p.tags["boxes"])
        assert len(asked) == 8
        assert all(inside[label] == thing for label, thing in asked)
        twice += len({label for label, _ in asked}) < min(8, len(inside))
    assert twice > 0
    some, full = (tasks.boxes(100, seed=1, filler=chance) for chance in (None, 1.0))
    assert full == tasks.boxes(100, seed=1)
    known = {len(p.text.split()) / int(p.tags["boxes"]) for p in some}
    assert len(known) > 20
    words = set(" ".join(some.texts).split()) - set(world.LABELS) - set(world.OBJECTS)
    assert words == set("The the is in Box holds contains , .".split())


def simulate(text: str) -> dict[str, str | None]:
    """Read a log of moves line by line and return what each box holds in the end."""
    opening, *lines = text.split(" . ")
    held = {}
    for entry in opening.removeprefix("inventory : ").split(" ; "):
        label, *rest = entry.split()
        held[label] = rest[1] if rest[0] == "holds" else None
    for line in lines:
        if not line.startswith("step"):
            continue
        what = line.split(" : ")[1].rstrip(" .").split()
        if what[1] == "moved":
            assert held[what[3]] == what[0]
            assert held[what[5]] is None
            held[what[3]], held[what[5]] = None, what[0]
        elif what[1] == "removed":
            assert held[what[3]] == what[0]
            held[what[3]] = None
        elif what[1] == "added":
            assert held[what[3]] is None
            held[what[3]] = what[0]
        else:
            held[what[0]], held[what[2]] = held[what[2]], held[what[0]]
    return held


def test_moves_answer_with_the_final_state() -> None:
    drawn = [*tasks.moves(300, seed=5), *tasks.moves(100, seed=6, steps=4, questions=2)]
    changed = 0
    for p in drawn:
        held = simulate(p.prompt)
        told = re.findall(r"Box (\w) contains the (\w+)", p.text)
        assert all(held[label] == thing for label, thing in told)
        first = simulate(p.prompt.split(" . ")[0])
        label, answer = told[-1]
        assert (p.tags["changed"] == "yes") == (first[label] != answer)
        changed += first[label] != answer
    assert 0.5 < changed / len(drawn) < 0.95


def test_moves_wording_never_occurs_in_pretraining() -> None:
    asked = " ".join(tasks.moves(100, seed=0).texts)
    seen = " ".join(shipped.mixture(2000, seed=0).texts)
    for phrase in (
        "inventory :",
        "step 1 :",
        "moved from",
        "swapped .",
        "removed from",
        "added to",
    ):
        assert phrase in asked
        assert phrase not in seen


def test_arithmetic_is_right() -> None:
    for p in tasks.arithmetic(300, seed=1):
        for left, sign, right, result in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", p.text):
            value = int(left) + int(right) if sign == "+" else int(left) - int(right)
            assert value == int(result)
            assert 0 <= value <= world.LARGEST


def test_facts_are_the_worlds_own() -> None:
    truth = world.facts()
    for p in tasks.facts(300, seed=1):
        assert p.target.strip() == truth[p.tags["person"], p.tags["attribute"]]


def test_copying_repeats_its_list() -> None:
    for p in [*tasks.copying(100, seed=1), *tasks.copying(100, seed=2, repeats=3)]:
        first, *again = p.text.removeprefix(f"{world.COPY_OPENING} ").split(" ; ")
        assert all(first.startswith(part) for part in again)


def test_reversal_says_its_list_from_the_end() -> None:
    for p in tasks.reversal(200, seed=1):
        listed, said = p.text.removeprefix(f"{world.REVERSAL_OPENING} ").split(" ; ")
        words = listed.split()
        assert words[::-1][: len(said.split())] == said.split()
        assert {f.strip() for f in p.foils} == set(words) - {p.target.strip()}
        assert p.tags == {"length": str(len(words))}
        assert not p.text.startswith(world.COPY_OPENING)


def test_narration_ends_on_the_carried_object() -> None:
    for p in tasks.narration(100, seed=1):
        assert p.target in p.prompt
        assert not any(f" the{foil} " in p.prompt for foil in p.foils)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="at least 1"):
        tasks.boxes(0)
    with pytest.raises(WorkbenchError, match="split 'dev'"):
        tasks.boxes(3, split="dev")  # pyright: ignore


def test_tokenizer_round_trip(tmp_path) -> None:
    from transformers import AutoTokenizer

    words = shipped.tokenizer()
    words.save_pretrained(tmp_path)
    text = tasks.moves(1, seed=0).texts[0]
    for each in (words, AutoTokenizer.from_pretrained(tmp_path)):
        ids = each(text)["input_ids"]
        assert ids[0] == each.bos_token_id
        assert each.decode(ids, skip_special_tokens=True) == text
