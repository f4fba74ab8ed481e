"""peft's own layers around the base's matrices, a module at a time and never the model.

For LoRA and a few others the change is known by formula. Of every other kind peft knows how it is
merged, so its layers are made as in a model, with the adapter's tensors in them, around matrices
that take no memory; then one module after the other is given its own matrix in float32, merged and
emptied again. Kinds that make their numbers of the base's matrix are made anew for every module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError, reason
from workbench.loaders.adapters.adapter import PREFIX, Adapter
from workbench.loaders.adapters.factors import Factors
from workbench.loaders.quiet import unsaid

NAME = "default"  # of the one adapter that lies in a shell


class Place(NamedTuple):
    """A module of the base. shape: of its weight as it is stored. turned: it is stored (in, out).
    tokens: it is an embedding. biased: it has a bias."""

    shape: tuple[int, ...]
    turned: bool = False
    tokens: bool = False
    biased: bool = False


class Shell:
    """An adapter on modules of these places; made when it is first asked."""

    def __init__(self, adapter: Adapter, places: Mapping[str, Place]) -> None:
        self.adapter, self.places = adapter, dict(places)
        self._made: Any = None

    def factors(self, module: str) -> Factors:
        """Up and down of a module whose kind has them, (out, in), float32."""
        low_rank = self.adapter.kind.low_rank
        assert low_rank is not None
        with torch.no_grad():
            up, down = low_rank(self._layer(module), NAME)
        return Factors(up.detach().float().contiguous(), down.detach().float().contiguous())

    def merged(
        self, module: str, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The tuned weight and bias of a module, float32, as these of the base are stored."""
        own = {"weight": weight.float(), "bias": None if bias is None else bias.float()}
        needs_base = self.adapter.kind.needs_base
        layer = self._around(module, own) if needs_base else self._layer(module)
        base = layer.get_base_layer()
        empty = base.weight, getattr(base, "bias", None)
        try:
            with torch.no_grad(), unsaid():
                for leaf, tensor in own.items():
                    if tensor is not None:
                        setattr(base, leaf, _frozen(tensor.clone()))
                layer.merge()
            made = layer.get_base_layer()
            found = made.weight.detach(), getattr(made, "bias", None)
        except Exception as error:  # peft's layers raise many kinds
            raise self._unfit(module, error) from error
        base.weight = empty[0]
        if empty[1] is not None:
            base.bias = empty[1]
        layer.merged_adapters.clear()  # nothing is left in it to be taken out again
        return found[0], None if found[1] is None else found[1].detach()

    def _layer(self, module: str) -> Any:
        if self._made is None:
            self._made = self._put_on(
                {name: _hollow(place) for name, place in self.places.items()}, whole=True
            )
        return self._in(self._made, module)

    def _around(self, module: str, own: Mapping[str, Tensor | None]) -> Any:
        """A shell of this module alone, made around its own matrix."""
        one = _hollow(self.places[module])
        for leaf, tensor in own.items():
            if tensor is not None:
                setattr(one, leaf, _frozen(tensor))
        return self._in(self._put_on({module: one}, whole=False), module)

    def _in(self, made: Any, module: str) -> Any:
        layer = made.get_submodule(PREFIX + module)
        if not hasattr(layer, "merge"):
            raise self._unfit(module, "peft does not adapt it")
        return layer

    def _put_on(self, modules: Mapping[str, nn.Module], *, whole: bool) -> Any:
        """A PeftModel of nothing but these modules, with the adapter's tensors in it. whole: they
        are all that it changes, so that every tensor has its place in it."""
        from peft import get_peft_model, set_peft_model_state_dict

        root = nn.Module()
        for name, module in modules.items():
            *above, last = name.split(".")
            at = root
            for part in above:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = at.get_submodule(part)
            at.add_module(last, module)
        config = self.adapter.peft_config()
        config.task_type = config.modules_to_save = None
        if hasattr(config, "bias"):
            config.bias = "none"
        config.target_modules = set(modules)
        if getattr(config, "feedforward_modules", None):
            config.feedforward_modules &= set(modules)
        state = {n: t for n, t in self.adapter.weights.items() if not self._is_replacement(n)}
        try:
            with torch.random.fork_rng(devices=[]), unsaid():
                made: Any = get_peft_model(root, config)  # pyright: ignore[reportArgumentType]
                told = set_peft_model_state_dict(made, state)
        except Exception as error:
            raise self._unfit(next(iter(modules)), error) from error
        if whole:
            self._require_complete(told)
        return made

    def _is_replacement(self, name: str) -> bool:
        return name not in {
            part for own in self.adapter.parts.values() for part in own.values()
        } and (name.startswith(PREFIX))

    def _require_complete(self, told: Any) -> None:
        """Raise WorkbenchError where a tensor found no place, or a place that others fill has
        none: random numbers would be merged."""
        if told.unexpected_keys:
            raise WorkbenchError(
                f"{told.unexpected_keys[0]} of adapter {self.adapter.reference} belongs to no "
                "module of this base; give the base it was trained on."
            )
        stored = {part for own in self.adapter.parts.values() for part in own}
        for name in told.missing_keys:
            plain = name.removeprefix(PREFIX).replace(f".{NAME}", "")
            module, _, part = plain.rpartition(f".{self.adapter.kind.prefix}")
            if module and self.adapter.kind.prefix + part in stored:
                raise WorkbenchError(
                    f"Adapter {self.adapter.reference} has no {plain}, although other "
                    "modules have it; save it again."
                )

    def _unfit(self, module: str, error: Exception | str) -> WorkbenchError:
        why = error if isinstance(error, str) else reason(error)
        return WorkbenchError(
            f"Adapter {self.adapter.reference} ({self.adapter.kind.name}) does not fit {module} of "
            f"the base, {self.places[module].shape} ({why}); give the base it was trained on."
        )


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _hollow(place: Place) -> Any:
    """A module of this form whose parameters are one zero each, seen as often as it takes."""
    from transformers.pytorch_utils import Conv1D

    if len(place.shape) != 2:
        raise WorkbenchError(
            "Expected an adapter of linear layers and embeddings, found one of a "
            f"parameter of shape {place.shape}; merge it into its base with peft and "
            "give the merged folder."
        )
    rows, columns = place.shape
    made: Any
    with torch.device("meta"):
        if place.tokens:
            made = nn.Embedding(rows, columns)
        elif place.turned:
            made = Conv1D(columns, rows)
        else:
            made = nn.Linear(columns, rows, bias=place.biased)
    made.weight = _frozen(torch.zeros(1).expand(rows, columns))
    if getattr(made, "bias", None) is not None:
        made.bias = _frozen(torch.zeros(1).expand(made.bias.shape)) if place.biased else None
    return made
