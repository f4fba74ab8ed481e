"""Per-item measurements that retention and the sweeps share, and the text they use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.errors import WorkbenchError
from workbench.loaders.devices import home
from workbench.tasks.generation import by
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import answers, text_loss

PIECES = 64  # of a text file, at most
LONGEST = 1 << 20  # characters of a line that are read at once


class Items(NamedTuple):
    """One metric per item: values (items,) and weights (items,), tokens for a loss."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]


def scores(model: Any, tokenizer: Any, prompts: PromptSet, batch_size: int = 32) -> Items:
    """1 where greedy decoding gives exactly the target, else 0, per prompt."""
    found = answers(model, tokenizer, prompts, batch_size=batch_size)["correct"].to_numpy(float)
    return Items(found, np.ones_like(found))


def losses(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 32) -> Items:
    """Nats per token of each text, weighted by its tokens."""
    found = text_loss(model, tokenizer, texts, batch_size=batch_size)
    return Items(found["loss"].to_numpy(float), found["tokens"].to_numpy(float))


def own_samples(
    model: Any, tokenizer: Any, *, n: int = 64, length: int = 64, seed: int = 0
) -> list[str]:
    """Texts drawn from the model itself at temperature 1 from its start token: a replacement for
    pre-training text that is not available. length: new tokens each, up to the tokenizer's end of a
    text, and no more than the model has positions for. The settings of the model's
    generation_config are ignored."""
    from transformers import GenerationConfig

    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id
    if start is None:
        raise WorkbenchError("The tokenizer has no start token to sample from; pass texts.")
    room = getattr(model.config, "max_position_embeddings", None) or length + 1
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=min(length, room - 1),
        bos_token_id=start,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ids = torch.full((n, 1), start, device=home(model))
    with torch.random.fork_rng(), torch.inference_mode(), by(settings, model):
        torch.manual_seed(seed)
        drawn = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    return [text for text in texts if text.strip()]


def read_text(path: str | Path, *, characters: int = 1000, most: int = PIECES) -> list[str]:
    """A text file in pieces that end at a line's end, at most `most` of about `characters`."""
    path = Path(path)
    if not path.is_file():
        raise WorkbenchError(f"Expected a text file, found nothing at {path}; check the path.")
    pieces: list[str] = []
    piece = ""
    with path.open(encoding="utf-8", errors="replace") as lines:
        # readline with a limit: a file without line ends is not held whole.
        while len(pieces) < most and (line := lines.readline(LONGEST)):
            piece += line
            if len(piece) >= characters:
                pieces.append(piece)
                piece = ""
    if len(pieces) == most:
        return pieces
    pieces += [piece] if piece.strip() else []
    if not pieces:
        raise WorkbenchError(f"{path} holds no text; give a file with text.")
    return pieces
