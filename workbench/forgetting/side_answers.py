"""How does each side of a pair answer? Each side is read once for the same question, and the base
once for all members of a family."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from workbench.errors import WorkbenchError
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.loaders.devices import home
from workbench.models import Layout, Site, capture
from workbench.models.layout import plain
from workbench.models.sides import named_dtype
from workbench.results.result import versions
from workbench.tasks.batching import batch, in_batches, pad_id, rows
from workbench.tasks.continuation import Watch
from workbench.tasks.kept import Kept
from workbench.tasks.measurements import Items, losses, own_samples
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import answers

Made = TypeVar("Made")
MOST = 400  # readings kept: small tables
SHOWN = 500  # characters of a question that a table keeps, its last
_KEPT: dict[tuple[object, ...], Any] = {}


class Side:
    """One checkpoint as it is run; its model is loaded when a reading is not there yet."""

    def __init__(
        self, checkpoint: Checkpoint, words: Any, batch_size: int, device: str, dtype: str
    ) -> None:
        self.checkpoint, self.words = checkpoint, words
        self.batch_size, self.device, self.dtype = batch_size, device, dtype

    @cached_property
    def model(self) -> Any:
        return self.checkpoint.load(self.device, named_dtype(self.dtype)).eval()

    def answers(self, prompts: PromptSet, temperature: float = 1.0) -> pd.DataFrame:
        """`tasks.answers` of these prompts."""
        return self.once(
            ("answers", prompts.fingerprint, temperature),
            lambda: answers(
                *(self.model, self.words, prompts),
                batch_size=self.batch_size,
                temperature=temperature,
                kept=self._kept,
            ),
        )

    def watched(self, prompts: PromptSet, watch: Watch) -> pd.DataFrame:
        """`answers`, read anew so that `watch` is shown every target's logits, see `tasks.answers`;
        whoever asks for them later finds them."""
        made = answers(
            *(self.model, self.words, prompts),
            batch_size=self.batch_size,
            kept=self._kept,
            watch=watch,
        )
        return self.once(("answers", prompts.fingerprint, 1.0), lambda: made)

    def losses(self, texts: Sequence[str]) -> Items:
        """Nats per token of each text."""
        asked = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
        return self.once(
            ("losses", asked), lambda: losses(self.model, self.words, texts, self.batch_size)
        )

    def samples(self, n: int = 64, seed: int = 0) -> list[str]:
        """Texts drawn from this side itself, see `tasks.own_samples`."""
        return self.once(
            ("samples", n, seed), lambda: own_samples(self.model, self.words, n=n, seed=seed)
        )

    def streams(self, prompts: PromptSet, position: int | str = -1) -> np.ndarray:
        """(layers + 1, prompts, width): the residual stream at one token of each prompt, first
        behind the embedding, then after every layer (resid_post)."""
        return streams(self.model, self.words, prompts, position, self.batch_size)

    def own(self) -> Any:
        """A model to change as one likes, an adapter merged into it, in float32."""
        own: Any = copy.deepcopy(self.checkpoint.load(self.device, torch.float32)).float()
        return own.merge_and_unload() if hasattr(own, "peft_config") else own

    @property
    def _kept(self) -> Kept | None:
        """Where what this side writes is kept; a model in memory can change under our eyes."""
        if not isinstance(self.checkpoint.reference, str | Path):
            return None
        how = (self.spelling, str(self.device), self.dtype)
        return Kept(self.checkpoint.identity, *how, sorted(versions().items()))

    @cached_property
    def spelling(self) -> str:
        """sha256 of how texts become tokens."""
        told: Any = getattr(self.words, "_tokenizer", None)
        whole = repr(self.words) if told is None else told.to_str()
        return hashlib.sha256(whole.encode()).hexdigest()

    def once(
        self,
        asked: tuple[object, ...],
        make: Callable[[], Made],
        kept: dict[tuple[object, ...], Any] = _KEPT,
    ) -> Made:
        """What `make` gives, made once for this checkpoint and these tokens; of a model in memory,
        which can change under our eyes, every time. kept: where it is held."""
        if not isinstance(self.checkpoint.reference, str | Path):
            return make()
        how = (self.spelling, self.batch_size, str(self.device), self.dtype)
        key = (self.checkpoint.identity, *how, *asked)
        if key not in kept:
            kept[key] = make()
            while len(kept) > MOST:
                kept.pop(next(iter(kept)))
        return kept[key]


def both(pair: CheckpointPair, batch_size: int, device: str, dtype: str) -> tuple[Side, Side]:
    """The base and the tuned side of a pair, asked in the base's tokens."""
    words = pair.base.tokenizer()
    base, tuned = (Side(one, words, batch_size, device, dtype) for one in (pair.base, pair.tuned))
    return base, tuned


def lost_prompts(base: Side, tuned: Side, prompts: PromptSet) -> np.ndarray:
    """(prompts,) whether the base answers right and the tuned model wrong."""
    first, last = (side.answers(prompts)["correct"].to_numpy(float) for side in (base, tuned))
    return first > last


def require_prompts(*sets: PromptSet) -> None:
    """Raises WorkbenchError for a set without prompts, or two of one name."""
    empty = [one.name for one in sets if not len(one)]
    if empty or not sets:
        raise WorkbenchError(f"Expected prompts to score; {', '.join(empty) or 'no set'} has none.")
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise WorkbenchError(f"Expected prompt sets of different names, found {names}.")


def fresh(model: Any, seed: int) -> Any:
    """A model of the same configuration with random weights, where the model's inputs are put: one
    that never learned anything."""
    root = plain(model)
    kind = next(root.parameters()).dtype
    with torch.random.fork_rng():
        torch.manual_seed(10_000 + seed)  # away from the small seeds that a base may have begun at
        made = type(root)(copy.deepcopy(root.config))
    return made.to(home(root), kind).eval()


def streams(
    model: Any, words: Any, prompts: PromptSet, position: int | str, batch_size: int
) -> np.ndarray:
    """(layers + 1, prompts, width), float32, see `Side.streams`."""
    layout, device = Layout(model), home(model)
    given, fill = rows(words, prompts), pad_id(words)
    places = [Site("resid_pre", 0, position=position)]
    places += [Site("resid_post", layer, position=position) for layer in range(layout.layers)]

    def run(at: list[int]) -> np.ndarray:
        inputs = batch(given, at, device, fill)
        with torch.inference_mode(), capture(model, places, at=inputs.index) as seen:
            model(**inputs.inputs, use_cache=False)
        # A span of several tokens is read as their mean.
        return np.stack([seen[place].float().mean(1).cpu().numpy() for place in places])

    found: list[Any] = [None] * len(given)
    for at, seen in in_batches([len(row.fed) for row in given], batch_size, run):
        for i, place in enumerate(at):
            found[place] = seen[:, i]
    return np.stack(found, axis=1)
