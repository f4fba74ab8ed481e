"""A direction of the residual stream: added to it while a model runs, or taken out of it.

    with direction.added(model, scale=2.0):     stream + scale * vector, at every token
        model.generate(...)
    with direction.ablated(model):              stream - (stream . unit) unit, at every token

Adding a mean difference is activation addition (Turner et al. 2023, arXiv 2308.10248; Rimsky et al.
2023, arXiv 2312.06681), taking one out directional ablation (Arditi et al. 2024, arXiv 2406.11717,
there of every layer at once).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.writing import Mark, says, writing
from workbench.models import Layout, Site, replace
from workbench.results.result import Result

KEY = "patching.steer"
MEASURE = (KEY, "patching.difference")  # whose Results hold directions
SAVED = Mark("a saved direction", says(b'"__metadata__"', b'"site":'))


@dataclass(frozen=True)
class Direction:
    """name: what it is of. site: where it is added, a site of the stream's width, at every token.
    vector: (width,), float32, in the stream's own unit."""

    name: str
    site: Site
    vector: NDArray[np.float32]

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.vector))

    @cached_property
    def unit(self) -> Tensor:
        """(width,) of norm 1; zeros where the vector is zero."""
        own = torch.from_numpy(np.ascontiguousarray(self.vector))
        return own / self.norm if self.norm else own

    @contextlib.contextmanager
    def added(self, model: Any, scale: float = 1.0) -> Iterator[None]:
        """The model with `scale` times the vector added at every token it is run on, in scoring and
        in generation. Raises WorkbenchError for a model of another width, and where the model did
        not run in the block."""
        self._require_width(model)
        more = scale * torch.from_numpy(np.ascontiguousarray(self.vector))
        with replace(model, {self.site: lambda own: own + more.to(own)}):
            yield

    @contextlib.contextmanager
    def ablated(self, model: Any) -> Iterator[None]:
        """The model with the direction's part taken out of every token's stream."""
        self._require_width(model)
        with replace(model, {self.site: lambda own: without(own, self.unit)}):
            yield

    def save(self, path: str | Path) -> Path:
        """Write the vector as safetensors; returns the path. No file that is anything else is
        overwritten."""
        from safetensors.numpy import save_file

        with writing(Path(path), SAVED) as temporary:
            about = {"name": self.name, "site": str(self.site)}
            save_file({"vector": np.ascontiguousarray(self.vector)}, temporary, about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """What `save` wrote. Raises WorkbenchError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                vector = file.get_tensor("vector")
            site = Site.parse(about["site"])
            if vector.ndim != 1 or vector.dtype != np.float32 or not np.isfinite(vector).all():
                raise ValueError("its vector is not one row of finite float32 numbers")
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise WorkbenchError(f"Expected a saved direction at {path}: {error}.") from error
        return cls(about.get("name", Path(path).stem), site, vector)

    @classmethod
    def of(cls, result: Result, member: str, layer: int) -> Direction:
        """The direction that `steer` or `difference` measured behind a layer. Raises WorkbenchError
        where the Result has none."""
        own = f"{member}/" if len(result.members) > 1 else ""
        found = result.tensors.get(f"{own}{tensor_key(layer)}")
        if result.analysis not in MEASURE or member not in result.members or found is None:
            raise WorkbenchError(
                f"Expected a result of {' or '.join(MEASURE)} with a direction of {member} "
                f"behind layer {layer}, found {result.analysis} of {', '.join(result.members)}; "
                "give one that measured this layer."
            )
        return cls(f"{member}, layer {layer}", Site("resid_post", layer), found)

    def _require_width(self, model: Any) -> None:
        width = Layout(model).width
        if width != len(self.vector):
            raise WorkbenchError(
                f"The direction {self.name!r} has {len(self.vector)} numbers, but the model's "
                f"stream {width}; give a direction of a model of this width."
            )


def tensor_key(layer: int) -> str:
    """The name under which a Result keeps the direction behind a layer."""
    return f"direction/{layer}"


def without(stream: Tensor, unit: Tensor) -> Tensor:
    """The stream (..., width) less its part along a unit vector (width,)."""
    along = unit.to(stream)
    return stream - (stream @ along)[..., None] * along


def equals(vector: NDArray[np.float32], draws: int, seed: int) -> NDArray[np.float32]:
    """(draws, width) vectors in random directions, of the norm of `vector` (width,)."""
    made = np.random.default_rng(seed).standard_normal((draws, len(vector)))
    made *= np.linalg.norm(vector) / np.linalg.norm(made, axis=1, keepdims=True)
    return made.astype(np.float32)
