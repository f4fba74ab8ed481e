"""The edited model as an ordinary checkpoint: what transformers, peft, vLLM and mergekit load.

A LoRA stays a LoRA where its edited change is of low rank: its modules, and factors from the SVD of
each module's new change, B = U sqrt(S) and A = sqrt(S) V^T, as peft's own
`reduce_intruder_dimension` splits them. Everything else becomes whole weights, parameter by
parameter in the shards and the precision of the fine-tuned model (of an adapter: its base's), so
that memory holds a few matrices and no more; tokenizer, chat template and settings of generation go
with it. edit.json says what was done, and README.md says it in words.

It misleads where an edit is smaller than the precision it is stored in: bfloat16 keeps 8 bits of an
entry, so that much of a small edit of whole weights rounds away. edit.json says how much was lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.edits.extract import extracted
from workbench.errors import WorkbenchError
from workbench.files.writing import Mark, replacing, require_free
from workbench.lab.members import adapter_of, plain_lora, whole_of
from workbench.loaders import CheckpointPair
from workbench.loaders.adapters import Factors
from workbench.loaders.adapters.factors import split
from workbench.loaders.adapters.lora import Lora
from workbench.loaders.names import ParameterSite
from workbench.loaders.quantised import quantisation
from workbench.models import Edit

ABOUT = "edit.json"
FORMAT = 1
EDITED = Mark("an edited model", lambda folder: (folder / ABOUT).is_file())
Form = Literal["adapter", "weights"]


def save(
    made: Edit,
    out: str | Path,
    *,
    form: Form | None = None,
    rank: int | None = None,
    says: Mapping[str, Any] | None = None,
) -> Path:
    """Write the edited model to the folder `out`, and return it.

    made: an edit of one pair, or of several over one base. form: "adapter", a LoRA over the base;
    "weights", whole weights; None writes an adapter where the fine-tuned model is a plain LoRA
    whose edited change has at most half of the directions there could be, and "adapter" makes a new
    LoRA of any other model (`edits.extract`). rank: of every module's
    change in an adapter, which keeps the best of that rank; None keeps all of it, by as many
    directions as the module that needs most. says: what was done, by name, which is written into
    edit.json, for example {"kind": "alpha", "strength": 0.8}.

    What an earlier call wrote there is replaced, anything else is left alone. edit.json holds base
    and fine-tuned models with their fingerprints, the form, how many parameters changed, and
    `lost`: the largest share of a change's norm that was not kept, by the rank of an adapter or by
    the stored precision of whole weights.
    Raises WorkbenchError before any work for a side that is in memory or quantised and an `out`
    that holds anything else; also for modules that no LoRA adapts.
    """
    pair, out = made.pair, Path(out)
    require_free(out, EDITED)
    _require(made, form, rank)
    lora = None if form == "weights" else plain_lora(pair)
    fitting = lora is not None and not _beside(made, lora)
    factors = _factored(made, lora, rank) if fitting and lora is not None else None
    if factors is not None and form is None and rank is None and _full(factors):
        factors = None
    about: dict[str, Any] = {
        "format": FORMAT, "done": dict(says or {}), "base": pair.base.about,
        "models": [*{part.pair.tuned.fingerprint: part.pair.tuned.about
                     for part in made.parts}.values()],
        "form": "weights" if factors is None else "adapter",
    }  # fmt: skip
    with replacing(out, EDITED) as fresh:
        if factors is not None and lora is not None:
            about |= _adapter(pair, lora, factors, fresh, out)
        elif form == "adapter" or rank is not None:
            about |= {"form": "adapter"} | extracted(made, fresh, out, rank)
        else:
            about |= _whole(made, fresh)
        (fresh / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        (fresh / "README.md").write_text(_card(pair, about), encoding="utf-8")
    return out


def _require(made: Edit, form: str | None, rank: int | None) -> None:
    if form not in (None, "adapter", "weights"):
        raise WorkbenchError(f'Expected form "adapter" or "weights", found {form!r}.')
    if rank is not None and (rank < 1 or form == "weights"):
        raise WorkbenchError(
            f"Expected a rank of at least 1, of an adapter; found {rank} and form {form!r}."
        )
    for part in made.parts:
        for side in (part.pair.base, part.pair.tuned):
            if side.folder is None:
                raise WorkbenchError(
                    f"{side.name} is a model in memory, and an edited model is written like its "
                    "files; save it with save_pretrained and give the folder."
                )
            if kind := quantisation(side.config):
                raise WorkbenchError(
                    f"{side.name} is quantised ({kind}), and an edit is written in plain numbers; "
                    "give the checkpoint it was made from."
                )


def _changed(made: Edit) -> Iterator[ParameterSite]:
    """Where an edited parameter is not the base's."""
    return (site for site in made.pair.sites("all") if made.tensor(site) is not None)


def _beside(made: Edit, lora: Lora) -> bool:
    """Whether more is edited than what the adapter adapts."""
    adapted = {f"{module}.weight" for module in lora.modules}
    return any(made.pair.comparable[site.name] not in adapted for site in _changed(made))


def _factored(made: Edit, lora: Lora, rank: int | None) -> dict[str, tuple[Factors, float]]:
    """Module -> the factors of its change, (out, in), and what they do not keep of it."""
    names = {f"{module}.weight": module for module in lora.modules}
    found = {}
    for site in _changed(made):
        module = names[made.pair.comparable[site.name]]
        found[module] = split(made.change(site), rank)
    return found


def _full(factors: Mapping[str, tuple[Factors, float]]) -> bool:
    """Whether some change has more than half of the directions there could be."""
    every = (own for own, _ in factors.values())
    return any(2 * own.up.shape[1] > min(len(own.up), own.down.shape[1]) for own in every)


def _adapter(
    pair: CheckpointPair,
    lora: Lora,
    factors: Mapping[str, tuple[Factors, float]],
    folder: Path,
    place: Path,
) -> dict[str, Any]:
    """Write a LoRA of one rank, the own one where that is enough."""
    most = max((own.up.shape[1] for own, _ in factors.values()), default=1)
    if any(own.up.shape[1] > lora.ranks[module] for module, (own, _) in factors.items()):
        same = {"r": most, "lora_alpha": most, "use_rslora": False}
        lora = replace(
            lora, config={**lora.config, **same, "rank_pattern": {}, "alpha_pattern": {}}
        )

    def change(module: str) -> Factors:
        rows, columns = lora.shape(module)
        empty = Factors(torch.zeros(rows, 0), torch.zeros(0, columns))
        own = factors[module][0] if module in factors else empty
        more = lora.ranks[module] - own.up.shape[1]
        pad = torch.nn.functional.pad
        return Factors(pad(own.up, (0, more)), pad(own.down, (0, 0, 0, more)))

    made = adapter_of(lora, change, pair.base, folder, place)
    lost = max((lost for _, lost in factors.values()), default=0.0)
    return {"changed": len(factors), "rank": most, "lost": lost, "norms": made}


def _whole(made: Edit, folder: Path) -> dict[str, Any]:
    pair = made.pair
    sites = {site.name: site for site in pair.sites("all")}
    whole = pair.tuned.lora is None  # whose shards hold the tuned numbers
    count, lost = 0, 0.0

    def stored(name: str, dtype: torch.dtype) -> Tensor | None:
        nonlocal count, lost
        edited = made.tensor(sites[name])
        base = pair.delta(sites[name]).base
        if edited is None:
            return base.to(dtype) if whole else None
        rounded, wanted = edited.to(dtype), edited.double() - base.double()
        count += 1
        norm = float(wanted.norm())
        if norm:
            lost = max(lost, float((rounded.double() - edited.double()).norm()) / norm)
        return rounded

    whole_of(pair, stored, folder)
    return {"changed": count, "lost": lost}


def _card(pair: CheckpointPair, about: Mapping[str, Any]) -> str:
    """What a stranger should know of the folder."""
    done = ", ".join(f"{key} {value}" for key, value in about["done"].items()) or "see edit.json"
    models = "\n".join(f"- {one['reference']} ({one['kind']})" for one in about["models"])
    form = (
        f"a LoRA adapter of rank {about['rank']}" if about["form"] == "adapter" else "whole weights"
    )
    return (
        f"# An edited fine-tune of {pair.base.name}\n\n"
        f"These weights were edited after training; they were not trained this way. Edit: {done}.\n"
        f"Written as {form}; {about['changed']} parameters differ from the base, and at most "
        f"{about['lost']:.2g} of a change's norm was lost in writing it.\n\n"
        f"Base: {pair.base.name}\n\nEdited from:\n\n{models}\n"
    )
