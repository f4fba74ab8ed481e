"""Small sets of prompts to try with, in shapes that people have theirs in: questions with choices
as lm-evaluation-harness reads them, and conversations as TRL does.

Both are of the small world of the shipped family. What a conversation asks was told in its first
message, so that any model that follows a chat can answer; the choices' facts only the family knows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench import tasks
from workbench.files.writing import Mark, says, writing
from workbench.tasks import world

SEED = 11
QUESTIONS = {
    "city": "Where does {name} live?",
    "job": "What is the job of {name}?",
    "pet": "Which pet does {name} have?",
    "food": "What does {name} like to eat?",
    "colour": "Which colour does {name} like?",
}
Rows = list[dict[str, Any]]


def choices(n: int = 100, *, seed: int = SEED) -> Rows:
    """n questions of `tasks.facts` (its test split) with four choices, the answer and its foils in
    an order drawn by `seed`: id, question, choices, answer (from 0), attribute, person."""
    rows = []
    for prompt in tasks.facts(n, seed=seed, split="test"):
        order = [prompt.target, *prompt.foils]
        random.Random(f"choices {seed} {prompt.id}").shuffle(order)
        row = {
            "id": prompt.id,
            "question": prompt.prompt,
            "choices": [one.strip() for one in order],
        }
        rows.append(row | {"answer": order.index(prompt.target), **prompt.tags})
    return rows


def chats(n: int = 40, *, seed: int = SEED) -> Rows:
    """n conversations of a system message that tells four facts and two turns that ask for two of
    them: id, messages (the last is the answer), attribute, person."""
    truth, rows = world.facts(), []
    for number in range(n):
        draw = random.Random(f"chats {seed} {number}")
        told = draw.sample(sorted(truth), 4)
        facts = " ".join(
            f"{world.FACT_TEMPLATES[a][0].format(name=name)} {truth[name, a]}." for name, a in told
        )
        messages = [{"role": "system", "content": f"Answer in one word. {facts}"}]
        asked = draw.sample(told, 2)
        for name, attribute in asked:
            question = QUESTIONS[attribute].format(name=name)
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": truth[name, attribute]},
            ]
        tags = dict(zip(("person", "attribute"), asked[-1], strict=True))
        rows.append({"id": f"chat-{number}", "messages": messages} | tags)
    return rows


SETS: dict[str, Callable[[], Rows]] = {"facts-choices": choices, "chat": chats}
SAVED = Mark("a set of prompts that was drawn before", says(b'{"id": "'))


def write(out: Path) -> list[Path]:
    """Every set of SETS as a file of JSON lines in the folder `out`."""
    made = []
    for name, drawn in SETS.items():
        path = out / f"{name}.jsonl"
        with writing(path, SAVED) as temporary:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in drawn())
            temporary.write_text("".join(lines), encoding="utf-8")
        made.append(path)
    return made
