"""One parameter of both sides, and what fine-tuning changed in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from workbench import numerics
from workbench.errors import WorkbenchError
from workbench.loaders.adapters import Factors
from workbench.loaders.names import ParameterSite


@dataclass(frozen=True)
class Delta:
    """One aligned parameter: matrices as (out, in), vectors as (n,).

    base: at stored precision. whole: the tuned tensor where it is stored or had to be formed.
    factors: the low-rank change where there is one. Neither: fine-tuning left it alone.
    """

    site: ParameterSite
    base: Tensor
    whole: Tensor | None = None
    factors: Factors | None = None

    @cached_property
    def tuned(self) -> Tensor:
        """The fine-tuned parameter; float32 where it is formed from factors."""
        if self.factors is not None:
            return self.base.float() + self.factors.product
        return self.base if self.whole is None else self.whole

    @cached_property
    def change(self) -> Tensor:
        """tuned - base in float32, formed densely."""
        if self.factors is not None:
            return self.factors.product
        return self.tuned.float() - self.base.float()

    def to(self, device: torch.device) -> Delta:
        """The same parameter on a device."""
        factors = self.factors and Factors(
            *(part.to(device) for part in vars(self.factors).values())
        )
        whole = None if self.whole is None else self.whole.to(device)
        return Delta(self.site, self.base.to(device), whole, factors)

    @cached_property
    def norm(self) -> float:
        """|tuned - base|_F."""
        if self.factors is not None:
            return self.factors.norm
        return numerics.norm(self.change) if self.changed else 0.0

    @cached_property
    def base_norm(self) -> float:
        """|base|_F; NaN where its numbers cannot be read."""
        return numerics.norm(self.base.float())

    @cached_property
    def changed(self) -> bool:
        """Whether any entry differs."""
        if self.factors is not None:
            return bool(self.factors.up.any() and self.factors.down.any())
        return self.whole is not None and bool(self.change.any())


class SealedDelta(Delta):
    """A parameter whose base is packed in a form that is not read: its change is known, by factors
    or as none, and what asks for its base is told why there is none. base: its shape alone."""

    def __init__(
        self, site: ParameterSite, base: Tensor, factors: Factors | None, why: str
    ) -> None:
        super().__init__(site, base, None, factors)
        object.__setattr__(self, "why", why)

    def __getattribute__(self, name: str) -> Any:
        if name == "base":
            raise WorkbenchError(object.__getattribute__(self, "why"))
        return super().__getattribute__(name)

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the base."""
        return object.__getattribute__(self, "base").shape

    @cached_property
    def base_norm(self) -> float:
        return float("nan")

    @cached_property
    def change(self) -> Tensor:
        return torch.zeros(self.shape) if self.factors is None else self.factors.product

    def to(self, device: torch.device) -> Delta:
        factors = self.factors and Factors(*(one.to(device) for one in vars(self.factors).values()))
        base = object.__getattribute__(self, "base")
        return SealedDelta(self.site, base, factors, object.__getattribute__(self, "why"))
