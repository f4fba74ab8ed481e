"""A few directions of the vocabulary that explain hidden states best, and their control.

The rows of the unembedding are directions that can be read as words. From them k are taken one
after the other, each the one along which the states, less what the words before it explain, vary
most (orthogonal least squares over a dictionary; Chen, Billings & Luo 1989). No label is seen, so
that nothing is learned of what the states are then asked for. The control chooses in the same way
from the vocabulary turned at random: as many rows, of the same norms and angles, that name nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.rotations import haar

Floats = NDArray[np.float64]


def explaining(states: Floats, words: Floats, k: int) -> tuple[Floats, list[int]]:
    """An orthonormal basis (width, at most k) of the words that explain the states best, and which
    they are. states: (prompts, width). words: (vocabulary, width). Fewer than k where nothing of
    the states is left."""
    left = states - states.mean(0)
    whole, sizes = float((left**2).sum()), (words**2).sum(1)
    # What of a word's direction no word before it has.
    own, basis, taken = sizes.copy(), np.zeros((states.shape[1], 0)), []
    while len(taken) < min(k, states.shape[1]) and (left**2).sum() > 1e-10 * whole:
        along = ((words @ left.T) ** 2).sum(1)
        gains = np.where(own > 1e-6 * np.maximum(sizes, 1e-30), along / np.maximum(own, 1e-30), 0)
        best = int(gains.argmax())
        if not gains[best] > 0:
            break
        vector = words[best] - basis @ (basis.T @ words[best])
        vector -= basis @ (basis.T @ vector)  # once more, against rounding
        vector /= np.linalg.norm(vector)
        basis, left = np.column_stack([basis, vector]), left - np.outer(left @ vector, vector)
        own = own - (words @ vector) ** 2
        taken.append(best)
    return basis, taken


def turned(words: Floats, seed: int) -> Floats:
    """The rows in a random rotation (Haar) of their space."""
    turn = haar(words.shape[1], words.shape[1], torch.Generator().manual_seed(seed))
    return words @ turn.numpy().astype(float)


def unembedding(model: object) -> Floats:
    """(vocabulary, width): the rows of a model's head, an adapter on it left out."""
    head = model.get_output_embeddings()  # type: ignore[attr-defined]
    return getattr(head, "base_layer", head).weight.detach().float().cpu().numpy().astype(float)
