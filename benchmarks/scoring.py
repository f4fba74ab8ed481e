"""Scoring beside a plain loop with transformers, on SmolLM2-135M and the same prompts: the ratio of
seconds, and whether the answers are the same.

What the plain loops do is what one writes in a script: prompts in the order they come, batches of
one size, filled on the right for choices (every choice a row of its own) and on the left for
`generate`. Of generations the workbench also reads the target, for its loss, which the loops do
not; beside short answers that shows. Each round times both, one after the other in one process, and
the ratio is the median over rounds. Prompts: questions of data/sets, with texts and with letters to
choose from; what is written is at most 128 tokens behind chats of data/sets, and behind
instructions.

    python -m benchmarks.scoring --out benchmarks/results [--prompts 32] [--batch-size 16]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, save, table, timed
from workbench import tasks
from workbench.demo.smollm2 import smollm2_file
from workbench.loaders import Checkpoint
from workbench.tasks.prompts import PromptSet

SETS = Path("data/sets")
LENGTH = 128


def plain_choices(model: Any, words: Any, prompts: PromptSet, batch_size: int) -> list[bool]:
    """Whether the target is the likeliest, with every choice as a row."""
    rows = [(i, p.prompt, text) for i, p in enumerate(prompts) for text in (p.target, *p.foils)]
    scores: list[list[float]] = [[] for _ in prompts]
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        before = [words(prompt).input_ids for _, prompt, _ in part]
        own = [words(text, add_special_tokens=False).input_ids for *_, text in part]
        longest = max(len(a) + len(b) for a, b in zip(before, own, strict=True))
        ids = torch.full((len(part), longest), words.pad_token_id)
        for row, (a, b) in enumerate(zip(before, own, strict=True)):
            ids[row, : len(a) + len(b)] = torch.tensor([*a, *b])
        mask = (torch.arange(longest) < torch.tensor(
            [[len(a) + len(b)] for a, b in zip(before, own, strict=True)])).long()  # fmt: skip
        with torch.inference_mode():
            logs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        for row, (a, b) in enumerate(zip(before, own, strict=True)):
            places = range(len(a) - 1, len(a) + len(b) - 1)
            total = sum(logs[row, at, token].item() for at, token in zip(places, b, strict=True))
            scores[part[row][0]].append(total)
    return [one[0] > max(one[1:]) for one in scores]


def plain_texts(model: Any, words: Any, prompts: PromptSet, batch_size: int) -> list[str]:
    """What is written greedily, by `generate`."""
    made = []
    words.padding_side = "left"
    for begin in range(0, len(prompts), batch_size):
        part = [p.prompt for p in prompts.prompts[begin : begin + batch_size]]
        given = words(part, return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = model.generate(**given, do_sample=False, max_new_tokens=LENGTH)
        made += words.batch_decode(ids[:, given.input_ids.shape[1] :], skip_special_tokens=True)
    return made


def measured(prompts: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    checkpoint = Checkpoint.parse(smollm2_file())
    model: Any = checkpoint.load(dtype=torch.float32).eval()
    words = checkpoint.tokenizer()
    texts, letters = (
        PromptSet.load(SETS / "facts-choices.jsonl", letters=one)[:prompts] for one in (False, True)
    )
    chats = tasks.chat(PromptSet.load(SETS / "chat.jsonl")[:prompts], words)
    long = tasks.chat(tasks.instructions(prompts, seed=0), words)
    short, written = (replace(one, scorer=tasks.Generation(length=LENGTH)) for one in (chats, long))
    rows = []
    for name, one, plain in (
        ("choices, texts of several tokens", texts, plain_choices),
        ("choices, letters", letters, plain_choices),
        ("generation, answers of a word or a sentence", short, plain_texts),
        (f"generation, instructions, up to {LENGTH} tokens", written, plain_texts),
    ):
        rows.append({"what": name} | _raced(model, words, one, plain, batch_size, rounds))
    return rows


def _raced(
    model: Any, words: Any, prompts: PromptSet, plain: Callable[..., list[Any]], batch_size: int,
    rounds: int,
) -> dict[str, Any]:  # fmt: skip
    times: list[tuple[float, float]] = []
    same = 0
    for _ in range(rounds):
        ours, first = timed(lambda: tasks.answers(model, words, prompts, batch_size=batch_size))
        theirs, last = timed(lambda: plain(model, words, prompts, batch_size))
        times.append((first, last))
        column = "answer" if isinstance(theirs[0], str) else "correct"
        same = sum(a == b for a, b in zip(ours[column], theirs, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    first, last = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "prompts": len(prompts), "workbench (s)": round(first, 2), "plain loop (s)": round(last, 2),
        "ratio": round(ratio, 2), "the same answer": f"{same} of {len(prompts)}",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    rows = measured(asked.prompts, asked.batch_size, asked.rounds)
    about = machine()
    lead = (__doc__ or "").partition("\n\n")[0].strip().replace("\n", " ")
    lines = [
        "# Scoring beside a plain loop",
        "",
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, {about['threads']} "
        f"threads, {about['date']}. {lead} Batches of {asked.batch_size}, medians of "
        f"{asked.rounds} rounds, ratios within a round.",
        "",
        *table(rows, list(rows[0])),
    ]
    save(asked.out, "scoring", {"machine": about, "rows": rows}, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
