"""What holds on one family of decoders, each cell against plain PyTorch or transformers.

A cell is "" where what it says holds, or the sentence by which the workbench refuses it. A wrong
number fails an assertion, and anything but a sentence is a traceback: both are faults.
"""

from __future__ import annotations

import copy
import math
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import workbench as wb
from tests.conftest import nudged
from tests.models import zoo
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.loaders.devices import home
from workbench.models import KINDS, Layout, Site, edit, hooks, site_verification, transformer_lens
from workbench.models.rerun import Rerun
from workbench.models.sites import HEADED
from workbench.tasks.batching import Batch, Row, batch
from workbench.tuco.contribution import decompose, per_prompt

WORDS = 600  # all that the shipped tokenizer knows
CLOSE = {"atol": 2e-4, "rtol": 2e-4}
TEXTS = ["the apple is in Box F, the cup is in Box B", "the book is in Box A"]


@dataclass(frozen=True)
class Case:
    """A tiny base and a member whose every parameter moved, on disk and as plain models."""

    family: str
    folder: Path
    more: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def folders(self) -> tuple[Path, Path]:
        base = zoo.small(self.family, vocab_size=WORDS, **self.more)
        without_filling(base)
        found = self.folder / "base", self.folder / "tuned"
        for folder, model in zip(found, (base, moved(copy.deepcopy(base))), strict=True):
            model.save_pretrained(folder)
            shipped.tokenizer().save_pretrained(folder)
        return found

    @cached_property
    def pair(self) -> wb.CheckpointPair:
        return wb.load_pair(*self.folders)

    @cached_property
    def null(self) -> wb.CheckpointPair:
        return wb.load_pair(self.folders[0], self.folders[0])

    @cached_property
    def plain(self) -> tuple[Any, Any]:
        """Base and tuned as transformers itself loads them."""
        options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
        kind = AutoModelForImageTextToText if self.family in zoo.SEEING else AutoModelForCausalLM
        base, tuned = (kind.from_pretrained(folder, **options).eval() for folder in self.folders)
        return base, tuned

    @cached_property
    def inputs(self) -> Batch:
        """Two prompts of unequal length with answers."""
        ids = torch.randint(3, WORDS, (2, 9), generator=torch.Generator().manual_seed(0)).tolist()
        given = [
            Row("long", ids[0], {"here": (4, 5)}, (7,)),
            Row("short", ids[1][:6], {"here": (3, 4)}, (8, 12)),
        ]
        return batch(given, [0, 1], "cpu", 0)


def stored(model: Any) -> dict[str, Tensor]:
    """Parameters and saved buffers of numbers, each once."""
    saved, named = model.state_dict(), dict(model.named_parameters())
    named |= {n: b for n, b in model.named_buffers() if n in saved and b.is_floating_point()}
    return named


def moved(model: Any) -> Any:
    """The model with every parameter, and every saved buffer of numbers, moved at random."""
    nudged(model, 0.02)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, buffer in stored(model).items():
            if name in dict(model.named_buffers()):
                buffer.add_(0.02 * torch.randn(buffer.shape, generator=draw))
    return without_filling(model)


def without_filling(model: Any) -> Any:
    """The row of the filling is zero: no training moves it, and some models set it so when they
    are loaded."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0
    return model


def logits(model: Any, given: Batch) -> Tensor:
    return model(**given.inputs, use_cache=False).logits


def weights(case: Case) -> None:
    """The change's sum of squares is that of the plain models' parameters and saved buffers; none
    of the null's."""
    base, tuned = (stored(model) for model in case.plain)
    wanted = sum(float((tuned[n] - base[n]).double().square().sum()) for n in base)
    found = [case.pair.delta(site) for site in case.pair.sites("all")]
    assert math.isclose(sum(one.norm**2 for one in found), wanted, rel_tol=1e-4)
    assert not any(case.null.delta(site).changed for site in case.null.sites("all"))


def run(case: Case) -> None:
    """Both sides' logits are transformers' own, and the null's sides are equal to the bit."""
    with case.pair.models(dtype=torch.float32) as sides:
        for side, model in zip((sides.base, sides.tuned), case.plain, strict=True):
            wanted = logits(model, case.inputs)
            torch.testing.assert_close(logits(side, case.inputs), wanted, **CLOSE)
    with case.null.models(dtype=torch.float32) as sides:
        one, other = (logits(side, case.inputs) for side in (sides.base, sides.tuned))
        assert torch.equal(one, other)


def texts(case: Case) -> None:
    """Mean KL(tuned || base) over the tokens of texts is that of the plain models' logits."""
    found = wb.behaviour.tokens(case.pair, TEXTS, show=0).metric("kl")["value"].item()
    words, total, count = case.pair.base.tokenizer(), 0.0, 0
    for text in TEXTS:
        ids = words(text, return_tensors="pt")["input_ids"]
        base, tuned = (
            model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
            for model in case.plain
        )
        total += float(kl_div(base, tuned, log_target=True, reduction="sum"))
        count += len(base)
    assert math.isclose(found, total / count, rel_tol=1e-3, abs_tol=1e-6)
    null = wb.behaviour.tokens(case.null, TEXTS, show=0).metric("kl")["value"].item()
    assert null == 0


def sites(case: Case) -> str:
    """The kinds of sites that are proved in every block that has them; else what is wrong."""
    layout = Layout(case.plain[1])
    refused = site_verification.refused(layout)
    return ", ".join(kind for kind in KINDS if layout.where(kind) and kind not in refused)


def tuco(case: Case) -> None:
    """PTC and FTC are what the base's own blocks make of the tuned model's stream."""
    base, tuned = case.plain
    layers = Layout(tuned).structure.layers
    theirs, ours = (model.get_submodule(layers) for model in (tuned, base))
    last, states = case.inputs.last, {}
    parts: list[tuple[Tensor, Tensor]] = []

    def behind(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        number = [*theirs].index(module)
        given = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))

        def own(value: Any) -> Any:
            # What blocks keep for later blocks the base's keep for theirs.
            kept = isinstance(value, dict | UserDict)
            return states.setdefault(id(value), copy.copy(value)) if kept else value

        made = ours[number](*map(own, args), **{n: own(v) for n, v in kwargs.items()})
        first, second = (o[0] if isinstance(o, tuple | list) else o for o in (made, output))
        parts.append((first - given, second - first))

    handles = [block.register_forward_hook(behind, with_kwargs=True) for block in theirs]
    logits(tuned, case.inputs)
    for handle in handles:
        handle.remove()
    rows = torch.arange(2)
    ptc, ftc = (
        torch.stack(part).sum(0)[rows, last].abs().sum(-1) for part in zip(*parts, strict=True)
    )
    with case.pair.models(dtype=torch.float32) as sides:
        found = per_prompt(decompose(sides, case.inputs)[0])["tuco"]
    torch.testing.assert_close(found, ftc / (ptc + ftc), **CLOSE)
    with case.null.models(dtype=torch.float32) as sides:
        assert (per_prompt(decompose(sides, case.inputs)[0])["tuco"] == 0).all()


def last(layout: Layout, site: Site) -> int | None:
    return layout.count(site) - 1 if site.kind in HEADED else None


def patching(case: Case) -> None:
    """A rerun from any site gives what the whole run with plain hooks gives; own values change
    nothing; the base ends as the tuned stream behind the last block would in it."""
    base, tuned = case.plain
    given, layout = case.inputs, Layout(base)
    known = [kind for kind in KINDS if kind not in site_verification.verdict(layout).refused]
    known = [kind for kind in known if kind not in site_verification.verdict(layout).read]
    places = [Site(kind, layer) for kind in known for layer in layout.where(kind)[-1:]]
    more = [Site(p.kind, p.layer, head=last(layout, p), position="here") for p in places]
    there = Rerun(tuned, given, read=set(places))
    once = Rerun(base, given, read=set(places))
    rows = torch.arange(2)[:, None]
    for site in [*places, *more]:
        value = there.read(site)
        whole = hooks.run(base, given.inputs, write={site: value}, at=given.index).logits
        found = once.again([{site: value}])[0]
        torch.testing.assert_close(found, whole[rows, once.scored], **CLOSE)
        null = once.again([{site: once.read(site)}], whole=True)[0]
        torch.testing.assert_close(null, once.logits[0], **CLOSE)
    end = Site("resid_post", layout.layers - 1)
    block = base.get_submodule(layout.structure.layers)[-1]

    def swapped(_module: nn.Module, _args: Any, output: Any) -> Any:
        new = there.kept[end]
        return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new

    handle = block.register_forward_hook(swapped)
    wanted = logits(base, given)[rows, once.scored]
    handle.remove()
    torch.testing.assert_close(once.again([{end: there.kept[end]}])[0], wanted, **CLOSE)


def grafts(case: Case) -> None:
    """The whole change laid on the base runs as the tuned model, half of it as the model between
    the two; nothing of it stays."""
    base, tuned = case.plain
    model = case.pair.base.load("cpu", torch.float32)
    before = logits(model, case.inputs)
    with edit(case.pair).on(model):
        torch.testing.assert_close(logits(model, case.inputs), logits(tuned, case.inputs), **CLOSE)
    between = copy.deepcopy(base)
    ends = stored(tuned)
    for name, tensor in stored(between).items():
        tensor.lerp_(ends[name], 0.5)
    with edit(case.pair, alpha=0.5).on(model):
        wanted = logits(between, case.inputs)
        torch.testing.assert_close(logits(model, case.inputs), wanted, **CLOSE)
    assert torch.equal(logits(model, case.inputs), before)
    assert not edit(case.null).tensors()


def handed_over(case: Case) -> None:
    """TransformerLens' bridge gives the plain logits, and its streams are ours."""
    _, tuned = case.plain
    model, layout = copy.deepcopy(tuned), Layout(tuned)
    made = transformer_lens.bridge(model, shipped.tokenizer(), own=True)
    ends = [Site("resid_post", layout.layers - 1), Site("resid_pre", 1)]
    found = transformer_lens.run(made, case.inputs.inputs, layout=layout, read=ends)
    plain = hooks.run(tuned, case.inputs.inputs, read=ends)
    torch.testing.assert_close(found.logits, plain.logits, atol=1e-3, rtol=1e-3)
    for site in ends:
        one, other = found.captured[site], plain.captured[site]
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


CELLS: dict[str, Callable[[Case], str | None]] = {
    "weights": weights, "run": run, "texts": texts, "sites": sites, "tuco": tuco,
    "patching": patching, "grafts": grafts, "TransformerLens": handed_over,
}  # fmt: skip
HOLDS = "holds"


def measured(family: str, folder: Path, only: tuple[str, ...] = tuple(CELLS)) -> dict[str, str]:
    """Cell -> "holds" (of sites: the kinds), or the refusal's sentence."""
    case, found = Case(family, folder), {}
    with torch.no_grad():
        for name in only:
            try:
                found[name] = CELLS[name](case) or HOLDS
            except WorkbenchError as refusal:
                # Not where on this machine it lay.
                found[name] = f"refused: {refusal}".replace(f"{folder}/", "")
            except Exception as fault:  # told, so that the other cells are measured too
                found[name] = f"fault: {type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    assert home(case.plain[0]).type == "cpu"
    return found
