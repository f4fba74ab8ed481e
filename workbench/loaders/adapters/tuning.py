"""An adapter on one base: the tuned parameter of every parameter that it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.loaders.adapters.adapter import Adapter, Target
from workbench.loaders.adapters.factors import Factors, dora
from workbench.loaders.adapters.lora import Lora
from workbench.loaders.adapters.shell import Place, Shell
from workbench.loaders.names import TOKENS, align
from workbench.loaders.weights import Weights

# Rows [first:last] of a tuned parameter, float32; entries of a vector.
Rows = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Tuning:
    """An adapter and the bare weights it stands on.

    targets: parameter of the bare weights -> what is changed there. turned: whether a parameter is
    stored (in, out). order: names of the parameters as the model runs with them, one module after
    the other. Matrices are given and returned as (out, in).
    """

    adapter: Adapter
    weights: Weights
    targets: Mapping[str, Target]
    turned: Callable[[str], bool]
    order: Callable[[], Sequence[str]]
    _last: dict[str, Factors] = field(default_factory=dict, repr=False, compare=False)

    def is_factored(self, parameter: str) -> bool:
        """Whether all its change is a product of two factors that need nothing of the base."""
        target = self.targets[parameter]
        if target.leaf != "weight":
            return False
        if isinstance(self.adapter, Lora):
            return "lora_magnitude_vector" not in self.adapter.parts[target.module]
        return self.adapter.kind.low_rank is not None

    def factors(self, parameter: str) -> Factors:
        """Those of one that `is_factored`; raises WorkbenchError unless they change a matrix of the
        base's shape."""
        target = self.targets[parameter]
        if not isinstance(self.adapter, Lora):
            found = self.shell.factors(target.module)
        elif target.cut is None:
            found = self.adapter.factors(target.module)
        else:
            found = self.adapter.expert_factors(target, self._stack(target.module))
        theirs, shape = (found.up.shape[0], found.down.shape[1]), self._shape(parameter)
        if theirs != shape:
            raise WorkbenchError(
                f"Adapter {self.adapter.reference} changes {target.module} by a {theirs} matrix "
                f"but the base has {shape} there; it was trained on another base."
            )
        return found

    def _stack(self, module: str) -> Factors:
        """Those of all experts of a layer, kept while they are asked for one after the other."""
        assert isinstance(self.adapter, Lora)
        if module not in self._last:
            self._last.clear()
            self._last[module] = self.adapter.factors(module)
        return self._last[module]

    def shape(self, parameter: str) -> tuple[int, int] | None:
        """(out, in) of the change by the adapter's headers; None where they do not tell it."""
        target = self.targets[parameter]
        if not isinstance(self.adapter, Lora) or target.leaf != "weight":
            return None
        out, inner = self.adapter.shape(target.module)
        out, inner = (inner, out) if target.across else (out, inner)
        return (out, inner) if target.cut is None else (out // target.cut.parts, inner)

    def formed(self, parameter: str, own: Tensor) -> Tensor:
        """The tuned parameter of this one of the base's, float32."""
        return self.rows(parameter, own)(0, len(own))

    def rows(self, parameter: str, own: Tensor) -> Rows:
        """The same, by rows, of which no more are formed at a time where that can be."""
        target = self.targets[parameter]
        if target.leaf == "tokens":
            return _sliced(self._with_tokens(target.module, own))
        if not isinstance(self.adapter, Lora):
            return _sliced(self._merged(parameter, target, own))
        if target.leaf == "bias":
            return _sliced(own.float() + self.adapter.bias(target.module))
        factors = self.factors(parameter)
        if self.is_factored(parameter):
            return lambda a, b: own[a:b].float() + factors.up[a:b] @ factors.down
        if self.adapter.is_embedding(target.module):  # whose norms are over all tokens
            whole = self.adapter.formed(target.module, own, factors)
            assert whole is not None
            return _sliced(whole)
        sizes = self.adapter.magnitude(target.module)
        assert sizes is not None
        return lambda a, b: dora(own[a:b], Factors(factors.up[a:b], factors.down), sizes[a:b])

    def _merged(self, parameter: str, target: Target, own: Tensor) -> Tensor:
        """By peft's own layer, given the base's other parameter of the module beside this one."""
        if self.adapter.kind.unformed:
            raise WorkbenchError(
                f"The weights of {self.adapter.reference} cannot be computed: an "
                f"adapter of {self.adapter.kind.name} changes no matrix by itself, "
                f"since {self.adapter.kind.unformed}; use analyses that run the model."
            )
        stem = parameter.rpartition(".")[0]
        if target.leaf == "weight":
            stored = own.T.contiguous() if self.turned(parameter) else own
            bias = self.weights.get(f"{stem}.bias")
            made = self.shell.merged(target.module, stored, bias)[0]
            return made.T if self.turned(parameter) else made
        made = self.shell.merged(target.module, self.weights[f"{stem}.weight"], own)[1]
        assert made is not None
        return made

    def _with_tokens(self, module: str, own: Tensor) -> Tensor:
        ids, rows = self.adapter.token_rows(module)
        if max(ids, default=0) >= len(own) or rows.shape[1] != own.shape[1]:
            raise WorkbenchError(
                f"Adapter {self.adapter.reference} changes {tuple(rows.shape)} rows of "
                f"{module}, up to token {max(ids)}, but the base has "
                f"{tuple(own.shape)} there; it was trained on another base."
            )
        return own.float().index_copy(0, torch.tensor(ids, dtype=torch.long), rows)

    def _shape(self, parameter: str) -> tuple[int, ...]:
        shape = self.weights.info[parameter].shape
        return shape[::-1] if self.turned(parameter) else shape

    @cached_property
    def shell(self) -> Shell:
        """peft's layers for all modules, made when one is needed."""
        places = {}
        for parameter, target in self.targets.items():
            stem = parameter.rpartition(".")[0]
            weight = f"{stem}.weight"
            if target.leaf == "tokens" or target.module in places or weight not in self.weights:
                continue
            places[target.module] = Place(
                self.weights.info[weight].shape,
                self.turned(weight),
                bool(TOKENS.search(weight)),
                f"{stem}.bias" in self.weights,
            )
        if self.adapter.kind.ordered:
            known = align(list(self.order()), [f"{module}.weight" for module in places])
            found = [name.removesuffix(".weight") for name in known.values()]
            places = {module: places[module] for module in found}
        return Shell(self.adapter, places)


def _sliced(whole: Tensor) -> Rows:
    return lambda first, last: whole[first:last]
