"""Prompts of the small world, and pairs whose difference lies in one planted place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import workbench as wb
from tests.conftest import nudged
from tests.models.conftest import decoder, kind, no_gradients
from tests.tuco.conftest import pair_of, paired, silence, write
from workbench.lab import shipped
from workbench.models import Layout, Site
from workbench.models.sites import Kind
from workbench.patching import edges
from workbench.tasks import Prompt, PromptSet

WORDS = len(shipped.tokenizer())


def model(kind: str = "llama", seed: int = 0, **more: Any) -> Any:
    """A random decoder that knows every word of the small world; other seeds move it a little."""
    made = decoder(kind, vocab_size=WORDS, max_position_embeddings=128, **more)
    return nudged(made, seed=seed) if seed else made


def boxes(n: int = 6, **more: Any) -> PromptSet:
    options: dict[str, Any] = {"count": 3} | more
    return wb.tasks.boxes(n, seed=3, split="test", **options)


def planted(folder: Path, layer: int, part: str, factor: float = 3.0, **more: Any) -> Any:
    """A pair that differs in one layer's output projection ("o", "down") alone."""
    base, tuned = model(**more), model(**more)
    layout = Layout(tuned)
    at: dict[str, Kind] = {"o": "z", "down": "mlp_hidden"}
    module: Any = layout.module(Site(at[part], layer))
    module.weight.mul_(factor)
    return paired(base, tuned, folder)


def value(result: Any, metric: str, **where: Any) -> torch.Tensor:
    """Values of a metric, arm "patch" unless told, in the table's order."""
    rows = result.metric(metric)
    for column, wanted in ({"arm": "patch"} | where).items():
        rows = rows[rows[column] == wanted]
    return torch.tensor(rows["value"].to_numpy(float))


THINGS = ("apple", "ball", "book", "card", "coin", "cup", "dice", "flag")
READER, MOVER = (0, 1), (2, 3)  # (layer, head)


def copier(kv_heads: int = 2) -> Any:
    """A hand-built circuit: READER copies which object was said into a hidden part of the stream,
    MOVER copies that into the part the head of the model reads. Nothing else does anything.

    Both attend uniformly (their queries and keys are zero). Objects are one-hot in 0 to 7 of the
    stream, hidden in 32 to 39, read in 40 to 47; all tokens have one norm.
    """
    words = shipped.tokenizer()
    made = silence(model(hidden_size=64, num_key_value_heads=kv_heads, tie_word_embeddings=False))
    embed, layers = made.model.embed_tokens.weight, made.model.layers
    embed.zero_()
    embed[torch.arange(WORDS), 8 + torch.arange(WORDS) % 24] = 1
    made.lm_head.weight.zero_()
    for place, thing in enumerate(THINGS):
        token = words(thing)["input_ids"][-1]
        embed[token] = torch.eye(64)[place]
        made.lm_head.weight[token, 40 + place] = 20
    for (layer, head), source, target in ((READER, 0, 32), (MOVER, 32, 40)):
        attention = layers[layer].self_attn
        attention.q_proj.weight.zero_()
        attention.k_proj.weight.zero_()
        attention.v_proj.weight.zero_()
        shared = head // (4 // kv_heads)
        rows = slice(8 * shared, 8 * shared + 8)
        attention.v_proj.weight[rows, source : source + 8] = torch.eye(8)
        attention.o_proj.weight[target : target + 8, 8 * head : 8 * head + 8] = torch.eye(8)
    return made


def said(n: int = 8, turn: int = 0) -> PromptSet:
    """Prompts that name one object, to be said again; turn: the object of another prompt."""
    things = [THINGS[i % 8] for i in range(n)]
    wrong = [THINGS[(i + turn) % 8] for i in range(n)]
    others = [tuple(f" {t}" for t in THINGS if t != own) for own in things]
    texts = [f"the {said} . the" + " ." * (i // 8) for i, said in enumerate(wrong)]
    return PromptSet(
        f"said {turn}",
        tuple(
            Prompt(str(i), text, f" {own}", foils)
            for i, (text, own, foils) in enumerate(zip(texts, things, others, strict=True))
        ),
    )


def edges_of(made: Any, *wanted: tuple[str, str]) -> torch.Tensor:
    """Which of a model's edges, by sender and receiver, are among these."""
    named = [tuple(link.named.values()) for link in edges.links(Layout(made))]
    assert set(wanted) <= set(named)
    return torch.tensor([name in wanted for name in named])


__all__ = [
    "MOVER", "READER", "boxes", "copier", "decoder", "edges_of", "kind", "model", "no_gradients",
    "pair_of", "paired", "planted", "said", "silence", "value", "write",
]  # fmt: skip
