"""A graft: which entries of the base's parameters are taken from the fine-tuned side.

theta(gamma) = theta_0 + gamma . (theta_1 - theta_0) with gamma a 0/1 mask over the N parameters
inside the blocks; embeddings and head are left out, as in Panigrahi et al. 2023 (arXiv 2302.06600).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, parsed
from workbench.files.writing import Mark, says, writing
from workbench.loaders import CheckpointPair
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit
from workbench.models.task_gradient import inside
from workbench.results.result import Result

KEY = "skills.localize"
SAVED = Mark("a saved graft", says(b'"__metadata__"', b'"sizes":'))
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Graft:
    """places: base parameter name -> sorted flat positions in the (out, in) matrix, int64, for the
    parameters it touches. sizes: entries of every parameter it was chosen among."""

    name: str
    places: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]

    def __len__(self) -> int:
        return sum(len(own) for own in self.places.values())

    @property
    def total(self) -> int:
        """N, the entries it was chosen among."""
        return sum(self.sizes.values())

    @property
    def share(self) -> float:
        """Entries taken over N."""
        return len(self) / self.total

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the entries it takes."""
        told = hashlib.sha256(json.dumps(dict(sorted(self.sizes.items()))).encode())
        for name, own in sorted(self.places.items()):
            told.update(name.encode() + own.astype(np.int64).tobytes())
        return told.hexdigest()

    def edit(self, pair: CheckpointPair, *, outside: bool = False) -> Edit:
        """The base with these entries of the tuned side; outside: with all others instead."""

        def mask(site: ParameterSite) -> bool | Tensor:
            if site.name not in self.places:
                return outside
            base = pair.delta(site).base
            chosen = torch.full((base.numel(),), outside, dtype=torch.bool, device=base.device)
            chosen[torch.from_numpy(self.places[site.name]).to(base.device)] = not outside
            return chosen.view(base.shape)

        return edit(pair, mask=mask)

    def __or__(self, other: Graft) -> Graft:
        """The entries of either."""
        return self._with(other, np.union1d, f"{self.name} + {other.name}")

    def __and__(self, other: Graft) -> Graft:
        """The entries of both."""
        return self._with(other, np.intersect1d, f"{self.name} & {other.name}")

    def _with(self, other: Graft, join: Callable[..., np.ndarray], name: str) -> Graft:
        if dict(self.sizes) != dict(other.sizes):
            raise WorkbenchError(
                f"Grafts are compared over the same parameters; {self.name} was chosen among "
                f"{self.total} entries of {len(self.sizes)} parameters, {other.name} among "
                f"{other.total} of {len(other.sizes)}."
            )
        none = np.zeros(0, dtype=np.int64)
        names = dict.fromkeys((*self.places, *other.places))
        joined = {n: join(self.places.get(n, none), other.places.get(n, none)) for n in names}
        return Graft(name, {n: own for n, own in joined.items() if len(own)}, self.sizes)

    def save(self, path: str | Path) -> Path:
        """Write the positions as safetensors: int64 arrays by parameter name."""
        from safetensors.numpy import save_file

        with writing(Path(path), SAVED) as temporary:
            about = {"name": self.name, "sizes": json.dumps(dict(self.sizes))}
            save_file(
                {n: np.ascontiguousarray(a) for n, a in self.places.items()}, temporary, about
            )
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Graft:
        """What `save` wrote; raises WorkbenchError for any other file."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():  # a pipe would be waited for
            raise WorkbenchError(f"Expected a saved graft at {path}: there is no such file.")
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                places = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sizes = parsed(about["sizes"])
            _require_places(places, sizes)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise WorkbenchError(f"Expected a saved graft at {path}: {error}.") from error
        return cls(about.get("name", Path(path).stem), places, sizes)

    @classmethod
    def of(
        cls, result: Result, member: str, *, arm: str = "learned", sparsity: float | None = None
    ) -> Graft:
        """One of the grafts that `localize` kept in a Result.

        sparsity: the one asked for there; None takes the smallest with 95% of the gain on the
        prompts that choose, or the largest where none has. Raises WorkbenchError where there is no
        such graft.
        """
        if result.analysis != KEY:
            raise WorkbenchError(
                f"Grafts are saved in results of {KEY}, found a result of "
                f"{result.analysis}; give one of {KEY}."
            )
        rows = result.table[(result.table["member"] == member) & (result.table["arm"] == arm)]
        kept = sorted(rows.loc[rows["metric"] == "size", "sparsity"]) if arm in KEPT else []
        if sparsity is None and kept:
            gains = rows[rows["metric"] == "choosing_gain"].set_index("sparsity")["value"]
            sparsity = next((s for s in kept if gains.get(s, 0.0) >= ENOUGH), kept[-1])
        if member not in result.members or sparsity is None or sparsity not in kept:
            raise WorkbenchError(
                f"No graft of {member}, {arm}, sparsity {sparsity} in this result; its "
                f"models are {result.members}, the saved sparsities of that arm are {kept}."
            )
        own = f"{member}/" if len(result.members) > 1 else ""

        def stored(key: str) -> dict[str, np.ndarray]:
            prefix = f"{own}{key}/"
            found = result.tensors.items()
            return {n.removeprefix(prefix): a for n, a in found if n.startswith(prefix)}

        places = stored(tensor_key(arm, sparsity))
        sizes = {name: int(array[0]) for name, array in stored(SIZES).items()}
        return cls(f"{member} {arm}", places, sizes)


KEPT = ("learned", "movement")  # arms whose grafts a Result keeps
SIZES = "N"  # the key of every parameter's entries
ENOUGH = 0.95  # of the fine-tuned gain: the paper's headline


def tensor_key(arm: str, sparsity: float) -> str:
    """The name under which a Result keeps a graft's positions, before the parameter's own."""
    return f"{arm}@{sparsity:g}"


def graft_of(name: str, masks: Masks) -> Graft:
    """Boolean masks, (out, in) by parameter name and for all of `inside`, in index form."""
    places = {n: m.flatten().nonzero()[:, 0].cpu().numpy() for n, m in masks.items()}
    sizes = {n: m.numel() for n, m in masks.items()}
    return Graft(name, {n: own for n, own in places.items() if len(own)}, sizes)


def count(pair: CheckpointPair) -> int:
    """N, the entries of `inside`."""
    info = pair.base.weights().info
    return sum(int(np.prod(info[site.name].shape)) for site in inside(pair))


def require_own(pair: CheckpointPair, graft: Graft) -> None:
    """Raise where a graft was chosen among other parameters than this pair's."""
    info = pair.base.weights().info
    sizes = {site.name: int(np.prod(info[site.name].shape)) for site in inside(pair)}
    if dict(graft.sizes) != sizes:
        raise WorkbenchError(
            f"The graft {graft.name!r} was chosen among {graft.total} entries of "
            f"{len(graft.sizes)} parameters, but {pair.name} has {sum(sizes.values())} entries of "
            f"{len(sizes)} in its blocks; give a graft of this base."
        )


def _require_places(places: Mapping[str, np.ndarray], sizes: object) -> None:
    """Raise ValueError unless every position is within the size its parameter is said to have."""
    if not isinstance(sizes, dict) or not all(is_count(size, 0) for size in sizes.values()):
        raise ValueError("the number of entries of its parameters is missing")
    for name, own in places.items():
        if own.dtype != np.int64 or own.ndim != 1 or name not in sizes:
            raise ValueError(f"{name!r} does not hold positions in a parameter")
        if len(own) and not (own[0] >= 0 and own[-1] < sizes[name] and (np.diff(own) > 0).all()):
            raise ValueError(
                f"the positions of {name!r} do not increase within its {sizes[name]} entries"
            )


def top(scores: Callable[[ParameterSite], Tensor], sites: list[ParameterSite], k: int) -> Masks:
    """Boolean masks of exactly the k largest scores over all sites; ties in order of position.

    scores(site): float32, not negative, of the parameter's shape; called three times a site, so
    that no more than one site's scores are held. The k-th value is found by two histograms over
    the halves of the float's bits, which for such numbers sort as the numbers do.
    """
    sizes = {s.name: 0 for s in sites}

    def bits(site: ParameterSite) -> Tensor:
        found = scores(site)
        sizes[site.name] = found.numel()
        if found.numel() and not bool((found >= 0).all()):
            raise WorkbenchError(f"The scores of {site.name} hold NaN or negative numbers.")
        # Adding 0 turns -0 into 0.
        return (found.float() + 0.0).contiguous().view(torch.int32)

    upper = sum(torch.bincount(bits(s).flatten() >> 16, minlength=1 << 16).cpu() for s in sites)
    total = sum(sizes.values())
    if not 0 <= k <= total:
        raise WorkbenchError(f"Expected 0 to {total} entries to choose, found {k}.")
    if k == 0:
        return {s.name: torch.zeros_like(bits(s), dtype=torch.bool) for s in sites}
    assert isinstance(upper, Tensor)
    high, left = _kth(upper, k)

    def low(site: ParameterSite) -> Tensor:
        own = bits(site).flatten()
        return torch.bincount(own[own >> 16 == high] & 0xFFFF, minlength=1 << 16).cpu()

    lower = sum(low(s) for s in sites)
    assert isinstance(lower, Tensor)
    rest, ties = _kth(lower, left)
    threshold = (high << 16) + rest
    masks = {}
    for site in sites:
        own = bits(site)
        equal = own == threshold
        first = equal & (equal.flatten().cumsum(0).view(equal.shape) <= ties)
        ties -= int(first.sum())
        masks[site.name] = (own > threshold) | first
    return masks


def _kth(histogram: Tensor, k: int) -> tuple[int, int]:
    """(the bucket that holds the k-th largest, how many of the k lie in it)."""
    above = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, k))
    before = int(above[place - 1]) if place else 0
    return len(histogram) - 1 - place, k - before
