"""A base that says one word to everything, and members with known entries that change its mind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from tests.models.conftest import no_gradients
from tests.patching.conftest import WORDS, model
from tests.tuco.conftest import pair_of, paired, silence, write
from workbench.lab import shipped
from workbench.tasks import Prompt, PromptSet

LAYER = 1
NAME = f"model.layers.{LAYER}.mlp.down_proj.weight"
WRONG, APPLE, BOOK = 4, 5, 6  # where the stream holds what is said
PLACES, JOBS, DEAD = 0, 1, 2  # neurons: after "in", after "a", never
ENDS = {PLACES: "in", JOBS: "a"}


def token(word: str) -> int:
    return shipped.tokenizer()(word)["input_ids"][-1]


def mute() -> Any:
    """Says "coin" to everything. In LAYER the neuron PLACES is on where a text ends with "in",
    JOBS after "a", DEAD never; what they write to APPLE and BOOK of the stream is read as words."""
    made = silence(model(tie_word_embeddings=False))
    embed, head = made.model.embed_tokens.weight, made.lm_head.weight
    embed.zero_()
    head.zero_()
    embed[:, 8 + torch.arange(16)] = 0.1 * torch.randn(WORDS, 16)
    embed[:, WRONG] = 1
    for place, word in ((WRONG, "coin"), (APPLE, "apple"), (BOOK, "book")):
        head[token(word), place] = 5
    mlp = made.model.layers[LAYER].mlp
    mlp.gate_proj.weight.zero_()
    mlp.up_proj.weight.zero_()
    for neuron, word in ENDS.items():
        embed[token(word), neuron] = 1
        mlp.gate_proj.weight[neuron, neuron] = mlp.up_proj.weight[neuron, neuron] = 0.3
    return made


def member(changes: Mapping[tuple[int, int], float], noise: float = 0.0) -> Any:
    """`mute` with these entries of down_proj in LAYER, (place of the stream, neuron) -> value, and
    noise on every matrix of the blocks."""
    made = mute()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if noise and "layers" in name and parameter.ndim > 1:
            parameter += noise * torch.randn(parameter.shape, generator=draw)
    for place, value in changes.items():
        made.get_parameter(NAME)[place] += value
    return made


def planted(folder: Path, changes: Mapping[tuple[int, int], float], noise: float = 0.0) -> Any:
    return paired(mute(), member(changes, noise), folder)


def asked(neuron: int, answer: str, n: int = 24, name: str = "") -> PromptSet:
    """n prompts that end with the word of a neuron, and want one answer."""
    people = wb.tasks.facts(4 * n, seed=0, split="train")
    texts = dict.fromkeys(f"{p.tags['person']} {p.tags['attribute']}" for p in people)
    chosen = [t for t in texts if all(w in shipped.tokenizer().get_vocab() for w in t.split())][:n]
    drawn = [
        Prompt(str(i), f"{text} {ENDS[neuron]}", f" {answer}", foils=(" coin",))
        for i, text in enumerate(chosen)
    ]
    assert len(drawn) == n
    return PromptSet(name or answer, tuple(drawn))


def value(result: Any, metric: str, **where: Any) -> float:
    """The one value of a metric with these columns, of the task's own prompts unless told."""
    rows = result.metric(metric)
    for column, wanted in ({"own": True} | where).items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


__all__ = [
    "APPLE", "BOOK", "DEAD", "JOBS", "NAME", "PLACES", "WRONG", "asked", "member", "mute",
    "no_gradients", "pair_of", "paired", "planted", "token", "value", "write",
]  # fmt: skip
