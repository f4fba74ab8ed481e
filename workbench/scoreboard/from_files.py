"""The analyses that read what other tools wrote, which is written here first: the log of an
evaluation of each side, and a dictionary that is exact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

import workbench.forgetting as forgetting
import workbench.patching as patching
from workbench.lab.known import Place
from workbench.loaders import CheckpointPair
from workbench.patching.sae import CFG, WEIGHTS
from workbench.results.result import Result
from workbench.scoreboard.entry import Entry, layers_of
from workbench.scoreboard.reading import items
from workbench.tasks.measurements import scores
from workbench.tasks.prompts import PromptSet


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="workbench-scoreboard-") as folder:
        yield Path(folder)


def _logged(model: Any, words: Any, prompts: PromptSet, file: Path) -> Path:
    """A log of one side as lm-evaluation-harness writes it, of what is read of it."""
    right = scores(model, words, prompts).values
    rows = (
        {"doc_id": prompt.id, "doc": {"question": prompt.prompt}, "target": prompt.target,
         "exact_match": float(value)}
        for prompt, value in zip(prompts, right, strict=True)
    )  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _samples(pair: CheckpointPair, prompts: PromptSet) -> Result:
    words = pair.base.tokenizer()
    with _folder() as folder, pair.models() as sides:
        logs = [
            _logged(model, words, prompts, folder / f"{side}.jsonl")
            for side, model in (("base", sides.base), ("tuned", sides.tuned))
        ]
        return forgetting.samples(*logs)


def _dictionary(width: int, folder: Path) -> Path:
    """Every coordinate of a state is a latent where it is positive, and another where it is not."""
    rows = torch.cat([torch.eye(width), -torch.eye(width)])
    about = {"d_in": width, "d_sae": 2 * width, "architecture": "standard",
             "normalize_activations": "none", "hook_name": "blocks.0.hook_resid_post"}  # fmt: skip
    (folder / CFG).write_text(json.dumps(about), encoding="utf-8")
    weights = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(2 * width)}
    save_file(weights | {"b_dec": torch.zeros(width)}, folder / WEIGHTS)
    return folder


def _by_layer(pair: CheckpointPair, prompts: PromptSet) -> Result:
    """The same dictionary behind every layer."""
    layers = layers_of(pair)
    with pair.models() as sides:
        width = sides.layout.width
    with _folder() as folder:
        sae = str(_dictionary(width, folder))
        found = {
            layer: patching.dictionary(pair, prompts, sae, site=f"{layer}.resid_post", shown=1)
            for layer in layers
        }
    table = pd.concat([one.table for one in found.values()], ignore_index=True)
    tensors = {
        f"{layer}/{name}": own for layer, one in found.items() for name, own in one.tensors.items()
    }
    first = found[layers[0]]
    return Result(first.analysis, table, first.provenance, tensors)


def _risen(found: Result, prompts: PromptSet) -> dict[Place, float]:
    """By how much more the latents differ behind each layer than behind the one before."""
    layers = sorted({int(layer) for layer in found.table["layer"]})
    apart = [
        np.linalg.norm(found.tensors[f"{at}/latents/tuned"] - found.tensors[f"{at}/latents/base"])
        for at in layers
    ]
    return {(at,): float(own) for at, own in zip(layers, np.diff(apart, prepend=0.0), strict=True)}


ENTRIES: dict[str, Entry] = {
    "forgetting.samples": Entry(
        lambda p, a, c: _samples(p, a),
        {"item": items},
        "metric == 'score_change' and (low > 0 or high < 0)",
        states="metric == 'score_change'",
    ),
    "patching.dictionary": Entry(
        lambda p, a, c: _by_layer(p, a),
        {"layer": _risen},
        "metric == 'changed' and value > baseline",
    ),
}  # fmt: skip
