"""How does a program become weights? An ordinary GPT-2 folder, its tokenizer with it, every weight
of which is written by construction.

The residual stream holds every coordinate twice, as x and -x, so that its mean is 0, and one
coordinate a constant that is large beside all others, so that its deviation is known: LayerNorm is
then the identity but for a share |x|^2 / 2 C^2, some 1e-5 (as in Tracr, where there is no norm; the
mirrored pairs are this project's). A head's query and key are one direction a label; a match scores
`SHARP` more than none, so that what is selected has all but exp(-SHARP) of the attention, and the
start token scores half of that. What a program does not use is no zero: other heads and neurons are
busy with a few coordinates of their own that nothing reads in the end ("bystanders"), so that a
method that asks every place has something to reject. Known and intended differences from trained
models: attention is saturated, so that gradients through patterns vanish.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import read_json
from workbench.files.writing import Mark, holds, replacing
from workbench.lab.compiled.program import POSITION, TOKEN, Head, Neuron, Program
from workbench.lab.prefixes import prefix_config, write_prefix
from workbench.lab.words import SPECIAL, tokenizer
from workbench.loaders import Checkpoint
from workbench.rotations import haar

CONSTANT = 1000.0
SHARP = 20.0  # nats between a selected token and another
BYSTANDERS, IDLE = 8, 16  # coordinates, and neurons of a layer, that the program does not use
COMPILED = Mark(
    "a compiled model",
    holds(
        "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json",
        marked=lambda folder: "compiled" in read_json(folder / "config.json"),
    ),
)  # fmt: skip
ABOUT = "compiled.json"  # which program a prefix stands over
PREFIX = Mark(
    "a compiled prefix",
    holds(
        "adapter_config.json", "adapter_model.safetensors", ABOUT,
        marked=lambda folder: (folder / ABOUT).is_file(),
    ),
)  # fmt: skip
State = dict[str, Tensor]


@dataclass(frozen=True)
class Room:
    """Where the labels of a program lie in the residual stream. half: coordinates, each there
    twice; hidden: neurons of a layer. at: (stream, label) -> coordinate."""

    half: int
    hidden: int
    at: Mapping[tuple[str, str], int]
    constant: int
    bystanders: range

    @classmethod
    def of(cls, *programs: Program) -> Room:
        """The room that all of these fit in: they must have the same words, streams and shape, so
        that their weights can be compared one by one. Raises WorkbenchError otherwise."""
        first = programs[0]
        for other in programs:
            for what in ("labels", "layers", "width"):
                if getattr(other, what) != getattr(first, what):
                    raise WorkbenchError(
                        f"Programs {first.name!r} and {other.name!r} differ in their {what}; a "
                        "pair needs the same."
                    )
        names = [(stream, label) for stream, of in first.labels.items() for label in of]
        count = len(names)
        half = math.ceil((count + 1 + BYSTANDERS) / first.width) * first.width
        most = max(
            sum(neuron.layer == layer for neuron in one.neurons)
            for one in programs
            for layer in range(one.layers)
        )
        at = {name: i for i, name in enumerate(names)}
        return cls(half, most + IDLE, at, count, range(count + 1, count + 1 + BYSTANDERS))


def weights(program: Program, room: Room | None = None, *, seed: int = 0) -> State:
    """Name -> float32 tensor of a GPT2LMHeadModel whose head is its own.

    room: where the labels lie, of all programs that are compared (`Room.of`); None: of this one
    alone. seed: of the bystanders, the same in every program of one room.
    """
    room = room or Room.of(program)
    n, labels = room.half, program.labels
    embedded, placed = torch.zeros(len(labels[TOKEN]), n), torch.zeros(program.positions, n)
    for i, word in enumerate(labels[TOKEN]):
        embedded[i, room.at[TOKEN, word]] = 1.0
    embedded[:, room.constant] = CONSTANT
    for i, place in enumerate(labels[POSITION]):
        placed[i, room.at[POSITION, place]] = 1.0
    head = torch.zeros(len(labels[TOKEN]), n)
    for stream, weight in program.says.items():
        for i, word in enumerate(labels[TOKEN]):
            if word in labels[stream]:
                head[i, room.at[stream, word]] = weight
    draw = torch.Generator().manual_seed(seed)
    own = [*room.bystanders]
    embedded[:, own] = 0.5 * torch.randn(len(embedded), len(own), generator=draw)
    found: State = {
        "transformer.wte.weight": _written(embedded),
        "transformer.wpe.weight": _written(placed),
        "lm_head.weight": _read(head.T).T.contiguous(),
        **_norm("transformer.ln_f", n),
    }
    for layer in range(program.layers):
        at = f"transformer.h.{layer}"
        heads = {one.head: one for one in program.heads if one.layer == layer}
        neurons = [one for one in program.neurons if one.layer == layer]
        found |= _norm(f"{at}.ln_1", n) | _norm(f"{at}.ln_2", n)
        found |= _attention(f"{at}.attn", program, room, heads, draw)
        found |= _mlp(f"{at}.mlp", room, neurons, draw)
    return found


def _attention(
    at: str, program: Program, room: Room, heads: Mapping[int, Head], draw: torch.Generator
) -> State:
    n, labels = room.half, program.labels
    size = 2 * n // program.width
    asks, keys, values = (torch.zeros(n, program.width, size) for _ in range(3))
    bias = torch.zeros(3, program.width, size)
    out = torch.zeros(program.width, size, n)
    own = [*room.bystanders]
    for number in range(program.width):
        # Drawn for every head, used or not, so that two programs have the same elsewhere.
        random = 0.3 * torch.randn(4, len(own), size, generator=draw)
        head = heads.get(number)
        if head is None:
            for part, noise in zip((asks, keys, values), random, strict=False):
                part[own, number] = noise
            out[number][:, own] = random[3].T / len(own)
            continue
        gain = math.sqrt(SHARP * math.sqrt(size))
        for j, key in enumerate(labels[head.key]):
            keys[room.at[head.key, key], number, j] = gain
            for query in labels[head.query]:
                if key not in SPECIAL and query not in SPECIAL:
                    asks[room.at[head.query, query], number, j] = gain * head.match(query, key)
        start = len(labels[head.key])
        bias[0, number, start] = gain
        keys[room.at[TOKEN, "<bos>"], number, start] = gain / 2
        for j, label in enumerate(labels[head.value]):
            values[room.at[head.value, label], number, j] = 1.0
            if label in labels[head.into]:
                out[number, j, room.at[head.into, label]] = head.strength
    read = [_read(part.flatten(1)) for part in (asks, keys, values)]
    return {
        f"{at}.c_attn.weight": torch.cat(read, dim=1),
        f"{at}.c_attn.bias": bias.flatten(),
        f"{at}.c_proj.weight": _written(out.flatten(0, 1)),
        f"{at}.c_proj.bias": torch.zeros(2 * n),
    }


def _mlp(at: str, room: Room, neurons: list[Neuron], draw: torch.Generator) -> State:
    n, own = room.half, [*room.bystanders]
    into, bias = torch.zeros(n, room.hidden), torch.zeros(room.hidden)
    out = torch.zeros(room.hidden, n)
    for j, neuron in enumerate(neurons):
        bias[j] = neuron.bias
        for place, weight in neuron.reads.items():
            into[room.at[place], j] = weight
        for place, weight in neuron.adds.items():
            out[j, room.at[place]] = weight
    idle = [*range(room.hidden - IDLE, room.hidden)]
    random = 0.3 * torch.randn(2, len(own), IDLE, generator=draw)
    into[torch.tensor(own)[:, None], idle] = random[0]
    out[torch.tensor(idle)[:, None], own] = random[1].T / len(own)
    return {
        f"{at}.c_fc.weight": _read(into),
        f"{at}.c_fc.bias": bias,
        f"{at}.c_proj.weight": _written(out),
        f"{at}.c_proj.bias": torch.zeros(2 * n),
    }


def _written(x: Tensor) -> Tensor:
    """(..., half) as what is added to the stream, (..., 2 half)."""
    return torch.cat([x, -x], dim=-1)


def _read(x: Tensor) -> Tensor:
    """(half, ...) as what reads the stream, (2 half, ...)."""
    return torch.cat([x, -x]) / 2


def _norm(at: str, half: int) -> State:
    scale = CONSTANT / math.sqrt(half)  # what the stream is divided by
    return {f"{at}.weight": torch.full((2 * half,), scale), f"{at}.bias": torch.zeros(2 * half)}


def rotated(state: State, *, seed: int = 0) -> State:
    """The same function in another basis of the residual stream: every matrix changes, no answer.

    The rotation keeps the direction (1, ..., 1), along which LayerNorm takes the mean, so that with
    equal gains it commutes with every norm.
    """
    width = state["lm_head.weight"].shape[1]
    draw = torch.Generator().manual_seed(seed)
    mean = torch.full((width, 1), width**-0.5, dtype=torch.float64)
    others = torch.linalg.qr(mean, mode="complete").Q[:, 1:]
    whole = mean @ mean.T + others @ haar(width - 1, width - 1, draw, torch.float64) @ others.T
    found = dict(state)
    for name, weight in state.items():
        if name.endswith(("wte.weight", "wpe.weight", "lm_head.weight", "c_proj.weight")):
            found[name] = (weight.double() @ whole).float()
        elif name.endswith(("c_attn.weight", "c_fc.weight")):
            found[name] = (whole.T @ weight.double()).float()
    return found


def save(program: Program, state: State, folder: str | Path) -> Path:
    """Write a model's folder, which transformers loads. Raises WorkbenchError where another kind of
    folder is in the way."""
    from transformers import GPT2Config

    hidden = state["transformer.h.0.mlp.c_fc.bias"].shape[0]
    config: Any = GPT2Config(
        vocab_size=len(program.labels[TOKEN]), n_positions=program.positions,
        n_embd=state["lm_head.weight"].shape[1], n_layer=program.layers, n_head=program.width,
        n_inner=hidden, activation_function="relu", tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, architectures=["GPT2LMHeadModel"], dtype="float32",
    )  # fmt: skip
    return folder_of(program, config, state, folder)


def save_prefix(program: Program, numbers: Tensor, base: Path, folder: Path) -> Path:
    """Write keys and values, (layer, 2, head, token, d_head), as an adapter of prefix tuning over
    this base. Raises WorkbenchError where another kind of folder is in the way."""
    with replacing(folder, PREFIX) as fresh:
        write_prefix(numbers, prefix_config(numbers), Checkpoint(str(base)), fresh, folder)
        (fresh / ABOUT).write_text(json.dumps({"compiled": program.name}), encoding="utf-8")
    return folder


def folder_of(program: Program, config: Any, state: State, folder: str | Path) -> Path:
    """Write this config and these tensors with the program's tokenizer."""
    config.compiled = program.name
    with replacing(Path(folder), COMPILED) as fresh:
        config.save_pretrained(fresh)
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
        tokenizer(program.words, longest=program.positions).save_pretrained(fresh)
    return Path(folder)
