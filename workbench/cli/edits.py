"""The verb that writes an edited model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import Base, Device, Seed, Tuned, texts
from workbench.cli.printing import say
from workbench.cli.reading import reads_prompts
from workbench.cli.values import asked

KIND = (
    "alpha, layers, intruders, rank, movement, random, harmful, reweighted, 1-bit or tiers; "
    "harmful and reweighted need --texts"
)


@reads_prompts
def save(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option(help="The folder to write the edited model to.")],
    kind: Annotated[str, typer.Option(help=f"The kind of edit: {KIND}.")] = "alpha",
    strength: Annotated[
        float | None, typer.Option(help="Of the edit: 1 is the fine-tuned model, for most kinds.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Without --strength: prompts of the learned task, on half of which it is chosen."
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
    form: Annotated[
        str | None,
        typer.Option(help="adapter or weights. Default: an adapter where that holds the edit."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Of an adapter's modules. Default: what loses nothing.")
    ] = None,
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
    if (strength is None) == (prompts is None):
        raise wb.WorkbenchError(
            "Expected either --strength, or --prompts to choose one on; give one of the two."
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
    assert strength is not None
    settings = wb.edits.Settings(seed=seed, device=device, texts=given or ())
    at = wb.edits.edits(pair, kind, settings)
    made = wb.edits.save(at(strength), out, form=form, rank=rank, says=says)  # pyright: ignore
    say(f"Saved: {made} ({(made / 'README.md').read_text(encoding='utf-8').splitlines()[2]})")


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
