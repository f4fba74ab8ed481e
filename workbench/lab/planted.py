"""Which change is truly there? Pairs whose difference was put there by hand, and is known.

Every function takes a base state (name -> tensor, or a folder with safetensors) and returns a
Planted pair: the whole tuned state and the truth an analysis must find.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workbench.errors import WorkbenchError
from workbench.files.writing import Mark, replacing
from workbench.lab.members import copy_side_files
from workbench.loaders.side_files import READ, TEMPLATES
from workbench.numerics import svd

State = Mapping[str, torch.Tensor]
NOT_IN_BLOCKS = ("embed", "lm_head", "wte", "wpe")
HEAD = "lm_head.weight"
WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


@dataclass(frozen=True)
class Truth:
    """What was planted.

    kind: the function's name. changed: names of the matrices that differ from the base.
    seed: of the random directions. parameters: the function's own arguments. expected: numbers
    that follow from the construction, by matrix.
    """

    kind: str
    changed: tuple[str, ...]
    seed: int
    parameters: Mapping[str, float | int]
    expected: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def _is_planted(folder: Path) -> bool:
    """A folder that `Planted.save` wrote: truth.json and a model's files, nothing else."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    kept = (*READ, ".safetensors")
    return "truth.json" in names and all(
        Path(name).suffix in kept or name == TEMPLATES for name in names
    )


PLANTED = Mark("a planted model", _is_planted)


@dataclass(frozen=True)
class Planted:
    """A tuned state (name -> tensor, dtypes as in the base) and its truth."""

    state: State
    truth: Truth

    def save(self, folder: str | Path, base: str | Path) -> Path:
        """Write a model folder that transformers loads: `base`'s files with these weights, and
        truth.json."""
        folder, base = Path(folder), Path(base)
        with replacing(folder, PLANTED) as fresh:
            copy_side_files(base, fresh)
            tensors = {name: tensor.contiguous() for name, tensor in self.state.items()}
            save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
            (fresh / "truth.json").write_text(json.dumps(asdict(self.truth), indent=1))
        return folder


def spike(
    base: State | str | Path, *, strength: float, q: int, matrix: str, seed: int = 0
) -> Planted:
    """Add strength * u v^T to one matrix, u an equal mix of q of the base's left singular vectors
    and v likewise of q right ones.

    strength: in units of the matrix's largest singular value, above 1 for a new top direction.
    The new top left vector then has cosine near 1/sqrt(q) with each of those q vectors and near 0
    with all others: an intruder at threshold 0.5 for q > 4, none for q < 4 (q = 4 sits on it).
    """
    state = read(base)
    weight = _matrix(state, matrix)
    u, s, vt = svd(weight.double())
    if not 1 <= q <= len(s):
        raise WorkbenchError(
            f"{matrix} has {len(s)} directions; q = {q} must be from 1 to that number."
        )
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randperm(len(s), generator=draw)[:q]
    signs = torch.randint(0, 2, (2, q), generator=draw, dtype=torch.float64) * 2 - 1
    left = u[:, picks] @ signs[0] / math.sqrt(q)
    right = signs[1] @ vt[picks] / math.sqrt(q)
    delta = strength * s[0] * torch.outer(left, right)
    expected = {matrix: {"max_cosine": 1 / math.sqrt(q), "norm": strength * s[0].item()}}
    return _planted(state, {matrix: delta}, "spike", seed, {"strength": strength, "q": q}, expected)


def sparse(
    base: State | str | Path,
    *,
    density: float,
    scale: float,
    matrices: Sequence[str] | None = None,
    seed: int = 0,
) -> Planted:
    """Change a share `density` of the entries of each matrix, at random places, by Gaussian noise.

    scale: the change's Frobenius norm over the matrix's. matrices: None takes all in the blocks.
    """
    if not 0 < density <= 1:
        raise WorkbenchError(f"density is a share of the entries in (0, 1], not {density}.")
    state, draw = read(base), torch.Generator().manual_seed(seed)
    deltas, expected = {}, {}
    for name in _select(state, matrices):
        weight = state[name].double()
        count = max(1, round(density * weight.numel()))
        delta = torch.zeros(weight.numel(), dtype=torch.float64)
        places = torch.randperm(weight.numel(), generator=draw)[:count]
        delta[places] = torch.randn(count, generator=draw, dtype=torch.float64)
        deltas[name] = _scaled(delta.view_as(weight), weight, scale)
        expected[name] = {"entries": count, "relative_norm": scale}
    return _planted(state, deltas, "sparse", seed, {"density": density, "scale": scale}, expected)


def low_rank(
    base: State | str | Path,
    *,
    k: int,
    scale: float,
    matrices: Sequence[str] | None = None,
    seed: int = 0,
) -> Planted:
    """Add a random change of rank k to each matrix, its k singular values all equal.

    scale: the change's Frobenius norm over the matrix's. The change's effective rank is k.
    matrices: None takes all in the blocks.
    """
    state, draw = read(base), torch.Generator().manual_seed(seed)
    deltas, expected = {}, {}
    for name in _select(state, matrices):
        weight = state[name].double()
        if not 1 <= k <= min(weight.shape):
            raise WorkbenchError(
                f"{name} has shape {tuple(weight.shape)}; rank k = {k} is not possible for it."
            )
        left, right = (
            torch.linalg.qr(torch.randn(side, k, generator=draw, dtype=torch.float64))[0]
            for side in weight.shape
        )
        deltas[name] = _scaled(left @ right.T, weight, scale)
        expected[name] = {"rank": k, "effective_rank": k, "relative_norm": scale}
    return _planted(state, deltas, "low_rank", seed, {"k": k, "scale": scale}, expected)


def one_layer(base: State | str | Path, *, layer: int, scale: float, seed: int = 0) -> Planted:
    """Add dense Gaussian noise to every matrix of one layer, and to no other.

    scale: the change's Frobenius norm over the matrix's.
    """
    state, draw = read(base), torch.Generator().manual_seed(seed)
    names = [n for n in _select(state, None) if re.search(rf"(?:^|\.){layer}\.", n)]
    if not names:
        raise WorkbenchError(f"The base has no matrices in layer {layer}; layers count from 0.")
    deltas = {}
    for name in names:
        weight = state[name].double()
        noise = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        deltas[name] = _scaled(noise, weight, scale)
    expected = {name: {"relative_norm": scale} for name in names}
    return _planted(state, deltas, "one_layer", seed, {"layer": layer, "scale": scale}, expected)


def wrapper(base: State | str | Path, *, first: int, second: int) -> Planted:
    """Exchange what the head says for two tokens, a change of rank 1: what the model computes stays
    as it was, every stream of it, and taking the change back restores every answer.

    first, second: token ids. The head must be a matrix of its own, not tied to the embedding.
    """
    state = read(base)
    weight = _matrix(state, HEAD).double()
    for token in (first, second):
        if not 0 <= token < len(weight) or first == second:
            raise WorkbenchError(
                f"Expected two tokens of {len(weight)} to exchange, found {first} and {second}."
            )
    delta = torch.zeros_like(weight)
    delta[first] = weight[second] - weight[first]
    delta[second] = -delta[first]
    expected = {HEAD: {"rank": 1, "norm": delta.norm().item()}}
    parameters = {"first": first, "second": second}
    return _planted(state, {HEAD: delta}, "wrapper", 0, parameters, expected)


def erasure(base: State | str | Path, directions: torch.Tensor) -> Planted:
    """Project directions out of everything that writes to the residual stream: the embedding and
    the output matrices of attention and MLP. No stream of the model then holds any of them.

    directions: (k, width), linearly independent. For Llama-like names; raises WorkbenchError where
    no such matrix is found, or the directions do not fit.
    """
    state = read(base)
    embeddings = [name for name in state if name.endswith("embed_tokens.weight")]
    outputs = [name for name in state if name.endswith(WRITERS)]
    if not embeddings or not outputs:
        raise WorkbenchError(f"The base has no matrices named *{', *'.join(WRITERS)} to change.")
    width = state[embeddings[0]].shape[1]
    if directions.ndim != 2 or directions.shape[1] != width:
        raise WorkbenchError(
            f"Expected directions (k, {width}), found shape {tuple(directions.shape)}."
        )
    basis = torch.linalg.qr(directions.double().T)[0]
    onto = basis @ basis.T
    deltas = {name: -state[name].double() @ onto for name in embeddings}
    deltas |= {name: -onto @ state[name].double() for name in outputs}
    expected = {name: {"rank": len(directions)} for name in deltas}
    parameters = {"directions": len(directions)}
    return _planted(state, deltas, "erasure", 0, parameters, expected)


def read(base: State | str | Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of a folder's safetensors files, or the state given, as a dict."""
    if not isinstance(base, str | Path):
        return dict(base)
    files = sorted(Path(base).glob("*.safetensors"))
    if not files:
        raise WorkbenchError(
            f"Expected a model folder with .safetensors files, found none in {base}."
        )
    state = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return state


def _matrix(state: State, name: str) -> torch.Tensor:
    if name not in state or state[name].ndim != 2:
        known = _select(state, None)
        raise WorkbenchError(f"No matrix {name!r} in the base; it has {known[:3]} and so on.")
    return state[name]


def _select(state: State, names: Sequence[str] | None) -> list[str]:
    """The named matrices, or all matrices but embeddings and head."""
    if names is not None:
        for name in names:
            _matrix(state, name)
        return list(names)
    chosen = [
        name
        for name, tensor in state.items()
        if tensor.ndim == 2 and not any(part in name for part in NOT_IN_BLOCKS)
    ]
    if not chosen:
        raise WorkbenchError("The base holds no matrices outside embeddings and head to change.")
    return chosen


def _scaled(delta: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
    return delta * (scale * weight.norm() / delta.norm())


def _planted(
    state: State,
    deltas: Mapping[str, torch.Tensor],
    kind: str,
    seed: int,
    parameters: Mapping[str, float | int],
    expected: Mapping[str, Mapping[str, float]],
) -> Planted:
    """The tuned state: changed matrices are sums taken in float64, the rest are the base's own."""
    tuned = dict(state)
    for name, delta in deltas.items():
        tuned[name] = (state[name].double() + delta).to(state[name].dtype)
    return Planted(tuned, Truth(kind, tuple(deltas), seed, parameters, expected))
