"""The verbs that write an edited model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    Base,
    Device,
    Members,
    Seed,
    Tuned,
    named,
    numbers,
    texts,
    words,
)
from workbench.cli.printing import say
from workbench.cli.reading import reads_prompts
from workbench.cli.values import asked

KIND = (
    "alpha, layers, intruders, rank, movement, random, harmful, reweighted, 1-bit or tiers; "
    "harmful and reweighted need --texts"
)


Form = Annotated[
    str | None,
    typer.Option(help="adapter or weights. Default: an adapter where that holds the edit."),
]
Rank = Annotated[
    int | None, typer.Option(help="Of an adapter's modules. Default: what loses nothing.")
]


@reads_prompts
def save(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option(help="The folder to write the edited model to.")],
    kind: Annotated[str, typer.Option(help=f"The kind of edit: {KIND}.")] = "alpha",
    strength: Annotated[
        float | None, typer.Option(help="Of the edit: 1 is the fine-tuned model, for most kinds.")
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help="Places where the edited change is kept, the base elsewhere: layers and "
            "components, such as 0-5,self_attn or 3.mlp.down_proj."
        ),
    ] = "",
    drop: Annotated[
        str, typer.Option(help="Places where the base's weights stand instead, as above.")
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Without --strength: prompts of the learned task, on half of which it is chosen."
        ),
    ] = None,
    graft: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a kind and a strength: a graft that skills graft wrote, whose entries "
            "are the fine-tuned model's, all others the base's."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            "--text",
            help="A file of text like the pre-training data; needed for the kinds harmful and "
            "reweighted. With --prompts and another kind the default is text sampled from the "
            "base.",
        ),
    ] = None,
    form: Form = None,
    rank: Rank = None,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Write an edited model that transformers, peft, vLLM and mergekit load.

    With --prompts the strength is chosen on one half of them and of the text, judged on the other,
    and nothing is written unless it gives back some of what was forgotten at a score that is kept.

    Example: workbench edit save BASE TUNED --kind alpha --strength 0.8 --out repaired
    """
    import workbench as wb
    from workbench.edits.kinds import require_kind
    from workbench.edits.repair import choosing
    from workbench.edits.save import EDITED
    from workbench.files.writing import require_free

    require_free(out, EDITED)
    if sum(given is not None for given in (strength, prompts, graft)) != 1:
        raise wb.WorkbenchError(
            "Expected either --strength, or --prompts to choose one on, or --graft; give one of "
            "the three."
        )
    where = {"keep": words(keep), "drop": words(drop)}
    if prompts is not None and (keep or drop):
        raise wb.WorkbenchError(
            "--keep and --drop make another model than the one whose strength is chosen with "
            "--prompts; give --strength."
        )
    if graft is not None and kind != "alpha":
        raise wb.WorkbenchError(
            f"--graft is written as it is, and --kind {kind} would edit the whole change; give one "
            "of the two."
        )
    if require_kind(kind).reads and text is None:
        raise wb.WorkbenchError(
            f"--kind {kind} reads texts; give --texts, a file like the pre-training data."
        )
    pair, given = wb.load_pair(base, tuned), texts(text)
    says: dict[str, Any] = {"kind": kind, "strength": strength}
    if prompts is not None:
        result = wb.edits.repair(
            pair, asked(prompts), texts=given, arms=(kind,), seed=seed, device=device
        )
        given = choosing(given, seed) if given else given
        strength, told = _recommended(result, kind)
        say(told)
        says |= {"strength": strength, "chosen": told}
    if strength is not None:
        settings = wb.edits.Settings(seed=seed, device=device, texts=given or ())
        edited = wb.edits.edits(pair, kind, settings)(strength)
    else:
        assert graft is not None
        says, edited = {"graft": graft.name}, wb.skills.Graft.load(graft).edit(pair)
    edited = wb.edits.within(edited, **where)
    _save(edited, out, form, rank, says | {name: one for name, one in where.items() if one})


def merge(
    base: Base,
    member: Members,
    out: Annotated[Path, typer.Option(help="The folder to write the merged model to.")],
    method: Annotated[
        str,
        typer.Option(
            help="mean, the mean of the changes; sum, their sum (task arithmetic); or ties."
        ),
    ] = "mean",
    weight: Annotated[
        list[str] | None,
        typer.Option(help="Of sum: NAME=NUMBER, the factor on that model's change; default 1."),
    ] = None,
    density: Annotated[
        float, typer.Option(help="Of ties: the share of every change's entries that is kept.")
    ] = 0.2,
    scale: Annotated[float, typer.Option(help="Of ties: the factor on the merged change.")] = 1.0,
    form: Form = None,
    rank: Rank = None,
) -> None:
    """Write several fine-tuned models of one base as one.

    It says nothing of whether their skills still work together: measure the merged model.

    Example: workbench edit merge BASE --member a=A --member b=B --method ties --out merged
    """
    import workbench as wb
    from workbench.edits.save import EDITED
    from workbench.files.writing import require_free

    require_free(out, EDITED)
    if method not in ("mean", "sum", "ties"):
        raise wb.WorkbenchError(f"Expected --method mean, sum or ties, found {method!r}.")
    if weight and method != "sum":
        raise wb.WorkbenchError(f"--weight is of --method sum, and the method is {method}.")
    family = wb.load_family(base, dict(named(member, "member")))
    weights = {name: numbers(one) for name, one in named(weight or [], "weight").items()}
    if unknown := sorted({*weights} - {*family.members}):
        raise wb.WorkbenchError(f"--weight names {unknown[0]!r}, which is no --member.")
    if several := [name for name, own in weights.items() if len(own) != 1]:
        raise wb.WorkbenchError(f"Expected one number as --weight of {several[0]!r}.")
    says: dict[str, Any] = {"merged": method}
    if method == "ties":
        says |= {"density": density, "scale": scale}
        made = wb.edits.ties([*family], density=density, scale=scale)
    else:
        factors = None
        if method == "sum":
            says["weights"] = {name: weights.get(name, (1.0,))[0] for name in family.members}
            factors = [*says["weights"].values()]
        made = wb.edits.summed([*family], factors)
    _save(made, out, form, rank, says)


def _save(made: Any, out: Path, form: str | None, rank: int | None, says: dict[str, Any]) -> None:
    import workbench as wb

    folder = wb.edits.save(made, out, form=form, rank=rank, says=says)  # pyright: ignore
    say(f"Saved: {folder} ({(folder / 'README.md').read_text(encoding='utf-8').splitlines()[2]})")


def _recommended(result: Any, kind: str) -> tuple[float, str]:
    """The strength that was chosen, and what it does; refused where it gives back nothing."""
    import workbench as wb
    from workbench import figures

    own = result.table[result.table["arm"] == kind]
    row = own[own["metric"] == "recommended"].iloc[0]
    told = figures.headline(result)
    if row["value"] != 1:
        raise wb.WorkbenchError(
            f"Nothing was written. {told}. Give more prompts and texts, another --kind, or a "
            "--strength of your own."
        )
    return float(row["x"]), told
