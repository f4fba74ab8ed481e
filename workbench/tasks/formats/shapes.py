"""What does a row mean? A table of the shapes that people's prompts come in, told by their keys.

Our own is what `PromptSet.save` writes. TRL's are of its dataset formats (prompt and completion,
messages, preferences), ShareGPT's conversations name the speakers otherwise; questions with choices
are worded as lm-evaluation-harness words them, "Question: ...\\nAnswer:", and so is GSM8K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from workbench.errors import WorkbenchError, some
from workbench.files.reading import is_number
from workbench.tasks.formats.conversations import before_answer, conversation
from workbench.tasks.prompts import SPLITS
from workbench.tasks.scorers import GSM8K, Choices, Continuation, Loss, Scorer

Fields = dict[str, Any]
# Keys that mean the same in every shape.
COMMON = ("id", "split", "template", "tags")
OTHER_SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}


@dataclass
class Asked:
    """How rows are read, and what was left out of them. letters: choices are listed in the prompt
    and answered by their letter."""

    letters: bool = False
    left_out: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Shape:
    """title: as a person calls it. needs: its keys, of which "a|b" is either. make: a row -> fields
    of a `Prompt`. may: further keys that mean something. when: what else tells it from others with
    the same keys. own: ours, whose texts carry their own leading space."""

    title: str
    needs: tuple[str, ...]
    make: Callable[[Mapping[str, Any], Asked], Fields]
    scorer: Scorer = Continuation()  # noqa: RUF009
    may: tuple[str, ...] = ()
    when: Callable[[Mapping[str, Any]], bool] = lambda row: True
    own: bool = False

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        """Keys that it needs and the row lacks; of either, the first."""
        lacking = (one.split("|") for one in self.needs)
        return [names[0] for names in lacking if not any(name in row for name in names)]

    @property
    def known(self) -> list[str]:
        """Every key that means something in it."""
        return [*(name for one in self.needs for name in one.split("|")), *self.may, *COMMON]


def text(value: Any, name: str) -> str:
    """A text, or a number as one."""
    if isinstance(value, str):
        return value
    if is_number(value):
        return str(value)
    raise WorkbenchError(f"{name} must be text, not {shown(value)}.")


def shown(value: Any) -> str:
    found = repr(value)
    return found if len(found) <= 60 else f"{found[:60]}..."


def _own(row: Mapping[str, Any], _: Asked) -> Fields:
    return {name: row[name] for name in (*OWN, "prompt", "target") if name in row}


OWN = ("foils", "spans", "messages")


def _completion(row: Mapping[str, Any], asked: Asked) -> Fields:
    return _answered(row["prompt"], row["completion"], "completion", asked)


def _preference(row: Mapping[str, Any], asked: Asked) -> Fields:
    prompt = row.get("prompt", [] if isinstance(row["chosen"], list) else None)
    if prompt is None:
        raise WorkbenchError("chosen and rejected texts need a prompt before them.")
    made = _answered(prompt, row["chosen"], "chosen", asked)
    return made | {"foils": [_answered(prompt, row["rejected"], "rejected", asked)["target"]]}


def _answered(prompt: Any, answer: Any, name: str, asked: Asked) -> Fields:
    """A prompt with its answer, each a text or messages; an answer may say the prompt again."""
    if not isinstance(prompt, list) and not isinstance(answer, list):
        return {"prompt": text(prompt, "prompt"), "target": text(answer, name)}
    if not isinstance(answer, list):
        answer = [{"role": "assistant", "content": text(answer, name)}]
    if not isinstance(prompt, list):
        again = answer and isinstance(answer[0], dict) and answer[0].get("role") != "assistant"
        prompt = [] if again else [{"role": "user", "content": text(prompt, "prompt")}]
    return before_answer(conversation([*prompt, *answer], "messages", asked.left_out))


def _messages(row: Mapping[str, Any], asked: Asked) -> Fields:
    return before_answer(conversation(row["messages"], "messages", asked.left_out))


def _conversations(row: Mapping[str, Any], asked: Asked) -> Fields:
    told = conversation(row["conversations"], "conversations", asked.left_out)
    system = row.get("system")
    if isinstance(system, str) and system and told and told[0]["role"] != "system":
        told.insert(0, {"role": "system", "content": system})
    return before_answer(told)


def _endings(row: Mapping[str, Any], asked: Asked) -> Fields:
    texts, labels = _choices(row["endings"], "endings")
    label = row["label"]
    # HellaSwag's own files have the number as text.
    right = int(label) if isinstance(label, str) and label.isdecimal() else label
    place = _place(right, texts, labels, "label")
    return _chosen(text(row["ctx"], "ctx"), texts, place, asked, "{}\n{}\nAnswer:")


def _question(row: Mapping[str, Any], asked: Asked) -> Fields:
    question = text(row["question"], "question").strip()
    if asked.letters:
        return _chosen(question, *_answer(row), asked, "Question: {}\n{}\nAnswer:")
    return _chosen(f"Question: {question}\nAnswer:", *_answer(row), asked, "")


def _worded(row: Mapping[str, Any], asked: Asked) -> Fields:
    return _chosen(text(row["prompt"], "prompt"), *_answer(row), asked, "{}\n{}\nAnswer:")


def _answer(row: Mapping[str, Any]) -> tuple[list[str], int]:
    """The choices of a row, and which of them is right."""
    texts, labels = _choices(row["choices"], "choices")
    name = "answer" if "answer" in row else "answerKey"
    return texts, _place(row[name], texts, labels, name)


def _chosen(prompt: str, texts: list[str], place: int, asked: Asked, listed: str) -> Fields:
    """The choice at `place` with the others as foils; with letters they are listed, as `listed`
    says, and the letters are the answers."""
    if asked.letters:
        letters = [chr(ord("A") + i) for i in range(len(texts))]
        lines = "\n".join(f"{a}. {one}" for a, one in zip(letters, texts, strict=True))
        prompt, texts = listed.format(prompt, lines), letters
    foils = [one for i, one in enumerate(texts) if i != place]
    return {"prompt": prompt, "target": texts[place], "foils": foils}


def lettered(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose choices stand under the keys A, B, C ..., as in MMLU's tables, with them as one
    list; any other as it is. Raises WorkbenchError where one between two of them is not there."""
    found = [key for key in ascii_uppercase if key in row]
    asked = {"question", "prompt"} & row.keys() and {"answer", "answerKey"} & row.keys()
    if len(found) < 2 or not asked or {"choices", "target"} & row.keys():
        return dict(row)
    gone = [key for key in ascii_uppercase[: len(found)] if key not in found]
    if gone:
        raise WorkbenchError(
            f"there are choices under {some(found)}, but none under {gone[0]}; give "
            "one to each letter."
        )
    made = {key: value for key, value in row.items() if key not in found}
    return made | {"choices": {"text": [row[key] for key in found], "label": found}}


def _choices(given: Any, name: str) -> tuple[list[str], list[str]]:
    """(the texts, their labels, none where none are given) of a list, or of ARC's {"text": [...],
    "label": [...]}."""
    labels: Any = []
    if isinstance(given, Mapping) and "text" in given:
        given, labels = given["text"], given.get("label") or []
    if not isinstance(given, list) or not isinstance(labels, list):
        raise WorkbenchError(f"{name} must be a list of texts, not {shown(given)}.")
    texts = [text(one, f"each of {name}").strip() for one in given]
    if not 2 <= len(texts) <= 26:
        raise WorkbenchError(f"{name} must be 2 to 26 texts, found {len(texts)}.")
    return texts, [str(one) for one in labels]


def _place(answer: Any, texts: list[str], labels: list[str], name: str) -> int:
    """Which choice an answer means: by its number from 0 on, its label, letter or text."""
    most = f"the {len(texts)} choices are numbered 0 to {len(texts) - 1}"
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(texts):
            raise WorkbenchError(f"{name} is {answer}, but {most}.")
        return answer
    if not isinstance(answer, str):
        raise WorkbenchError(f"{name} must be a number, letter or text, not {shown(answer)}.")
    said = answer.strip()
    if said in labels[: len(texts)]:
        return labels.index(said)
    letter = ord(said) - ord("A") if len(said) == 1 and "A" <= said <= "Z" else -1
    found = {*([texts.index(said)] if said in texts else [])}
    found |= {letter} if 0 <= letter < len(texts) and not labels else set()
    if len(found) > 1:
        raise WorkbenchError(f"{name} {said!r} is one choice's text and another's letter.")
    if found:
        return found.pop()
    if letter >= 0:
        last = chr(ord("A") + len(texts) - 1)
        raise WorkbenchError(f"{name} is {said}, but the {len(texts)} choices are A to {last}.")
    if said.isdecimal():
        raise WorkbenchError(f"{name} is the text {said!r}; {most}, given as a number: {said}.")
    raise WorkbenchError(f"{name} {shown(said)} is none of the choices {some(texts)}.")


def _asked_alone(row: Mapping[str, Any], _: Asked) -> Fields:
    question = text(row["question"], "question").strip()
    return {"prompt": f"Question: {question}\nAnswer:", "target": text(row["answer"], "answer")}


def _text(row: Mapping[str, Any], _: Asked) -> Fields:
    return {"prompt": "", "target": text(row["text"], "text")}


def _worked(row: Mapping[str, Any]) -> bool:
    return isinstance(row["answer"], str) and "####" in row["answer"]


# The first whose keys a row has is its shape.
SHAPES: tuple[Shape, ...] = (
    Shape("prompt and target", ("prompt", "target"), _own, may=OWN, own=True),
    Shape("chosen and rejected", ("chosen", "rejected"), _preference, Choices(), ("prompt",)),
    Shape("prompt and completion", ("prompt", "completion"), _completion),
    Shape("messages", ("messages",), _messages, may=("tools", "prompt")),
    Shape("conversations", ("conversations",), _conversations, may=("tools", "system")),
    Shape(
        "prompt, choices and answer", ("prompt", "choices", "answer|answerKey"), _worded, Choices()
    ),
    Shape("ctx, endings and label", ("ctx", "endings", "label"), _endings, Choices()),
    Shape(
        "question, choices and answer", ("question", "choices", "answer|answerKey"), _question,
        Choices(),
    ),
    Shape("question and worked answer (####)", ("question", "answer"), _asked_alone, GSM8K,
          when=_worked),
    Shape("question and answer", ("question", "answer"), _asked_alone),
    Shape("text", ("text",), _text, Loss()),
)  # fmt: skip
# Every key that a row may be given, for a map.
NAMES = tuple(dict.fromkeys(name for shape in SHAPES for name in shape.known))


def shape_of(row: Mapping[str, Any]) -> Shape | None:
    """The shape of a row, None where it has the keys of none."""
    return next((one for one in SHAPES if not one.missing(row) and one.when(row)), None)


def fields_of(shape: Shape, row: Mapping[str, Any], asked: Asked, *, spaced: bool) -> Fields:
    """The fields of a Prompt, but its id. spaced: a space comes before target and foils where the
    prompt does not end in white space and they do not begin with it."""
    made = shape.make(row, asked)
    further = {name: value for name, value in row.items() if name not in shape.known}
    tags = row.get("tags", {})
    if shape.own:  # strict: what it is told is what is meant
        made |= {name: row[name] for name in ("split", "template") if name in row}
        made["tags"] = {**dict(_scalars(further)), **tags} if isinstance(tags, Mapping) else tags
    else:
        split = row.get("split")
        plain = OTHER_SPLITS.get(split, split) if isinstance(split, str) else None
        made |= {"split": plain} if plain in SPLITS else {}
        further |= {} if plain in SPLITS else {"split": split}
        made |= {"template": row["template"]} if isinstance(row.get("template"), str) else {}
        further |= tags if isinstance(tags, Mapping) else {}
        made["tags"] = dict(_scalars(further))
    if spaced and "messages" not in made:
        made["target"] = _after(made["prompt"], made["target"])
        if isinstance(made.get("foils"), list):
            made["foils"] = [_after(made["prompt"], foil) for foil in made["foils"]]
    return made


def _after(prompt: Any, answer: Any) -> Any:
    plain = isinstance(prompt, str) and isinstance(answer, str)
    if plain and prompt and answer and not prompt[-1].isspace() and not answer[0].isspace():
        return f" {answer}"
    return answer


def _scalars(further: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of further keys of a row those whose values are texts or numbers, as tags."""
    for name, value in further.items():
        if isinstance(value, bool):
            yield name, str(value).lower()
        elif isinstance(value, str | int | float) and value != "":
            yield name, str(value)
