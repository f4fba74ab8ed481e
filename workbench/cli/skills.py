"""How few parameters carry the skill? Grafts, masks, restoration, composition, compression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.shared import (
    Base,
    Batch,
    Device,
    Dtype,
    Json,
    Members,
    Save,
    Seed,
    Tuned,
    asked,
    finish,
    named,
    numbers,
    running,
    words,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Task = Annotated[Path, typer.Option(help="Prompts with answers of what was learned, JSONL or CSV.")]
Others = Annotated[
    list[Path] | None, typer.Option("--other", help="Further prompts to score; may repeat.")
]
Shares = Annotated[str, typer.Option(help="Comma-separated shares, e.g. 0.001,0.01,0.1.")]
Arms = Annotated[str, typer.Option(help="Comma-separated; default: all.")]


@app.command()
def localize(
    base: Base,
    tuned: Tuned,
    prompts: Task,
    other: Others = None,
    sparsity: Shares = "",
    arms: Arms = "",
    epochs: Annotated[int, typer.Option(help="Passes over the prompts for a learned mask.")] = 20,
    rate: Annotated[float, typer.Option(help="Of the learned mask's first step.")] = 0.3,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """How few parameters carry it? Learned masks beside every baseline, arXiv 2302.06600.

    Example: workbench skills localize BASE TUNED --prompts task.jsonl --sparsity 0.001,0.01,0.1
    """
    import workbench as wb
    from workbench.skills.localize import ARMS, SPARSITIES

    result = wb.skills.localize(
        wb.load_pair(base, tuned),
        asked(prompts),
        sparsity=numbers(sparsity) or SPARSITIES,
        arms=words(arms) or ARMS,
        epochs=epochs,
        rate=rate,
        **_run(other, batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def blocks(
    base: Base,
    tuned: Tuned,
    prompts: Task,
    other: Others = None,
    most: Annotated[int, typer.Option(help="Blocks taken one after the other.")] = 12,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Each changed matrix off, alone, and the fewest that do; ranks of all of them.

    Example: workbench skills blocks BASE ADAPTER --prompts task.jsonl
    """
    import workbench as wb

    pair, task = wb.load_pair(base, tuned), asked(prompts)
    run = _run(other, batch_size, device, dtype, seed)
    finish(wb.skills.blocks(pair, task, most=most, **run), out, json)


@app.command()
def restore(
    base: Base,
    tuned: Tuned,
    prompts: Task,
    other: Others = None,
    shares: Shares = "",
    arms: Arms = "",
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Growing shares of the update set back to the base: how much of it helps?

    Example: workbench skills restore BASE TUNED --prompts task.jsonl --shares 0.01,0.1,0.5
    """
    import workbench as wb
    from workbench.skills.restore import ARMS, SHARES

    result = wb.skills.restore(
        wb.load_pair(base, tuned),
        asked(prompts),
        shares=numbers(shares) or SHARES,
        arms=words(arms) or ARMS,
        **_run(other, batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def compression(
    base: Base,
    tuned: Tuned,
    prompts: Task,
    other: Others = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Score against stored bits: low rank, one bit, tiers, masks.

    Example: workbench skills compression BASE TUNED --prompts task.jsonl
    """
    import workbench as wb

    pair, task = wb.load_pair(base, tuned), asked(prompts)
    run = _run(other, batch_size, device, dtype, seed)
    finish(wb.skills.compression(pair, task, **run), out, json)


@app.command()
def calibration(
    base: Base,
    tuned: Tuned,
    prompts: Task,
    other: Others = None,
    graft: Annotated[
        list[Path] | None, typer.Option(help="A graft file to read beside; may repeat.")
    ] = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Calibration error, Brier score and reliability of base, member and grafts.

    Example: workbench skills calibration BASE TUNED --prompts task.jsonl
    """
    import workbench as wb

    pair, task = wb.load_pair(base, tuned), asked(prompts)
    grafts = {path.stem: wb.skills.Graft.load(path) for path in graft or ()}
    run = _run(other, batch_size, device, dtype, seed)
    finish(wb.skills.calibration(pair, task, grafts=grafts, **run), out, json)


@app.command()
def graft(
    result: Annotated[Path, typer.Argument(help="A Result of `skills localize`.")],
    file: Annotated[Path, typer.Argument(help="Safetensors file to write the graft to.")],
    member: Annotated[str, typer.Option(help="Default: the first.")] = "",
    arm: Annotated[str, typer.Option(help="learned or movement.")] = "learned",
    sparsity: Annotated[
        float | None, typer.Option(help="As asked; default: the smallest with 95% of the gain.")
    ] = None,
) -> None:
    """Take one graft out of a Result, as a file of positions.

    Example: workbench skills graft out/localize ledger.safetensors --sparsity 0.01
    """
    import workbench as wb
    from workbench.skills import Graft

    found = wb.Result.load(result)
    made = Graft.of(found, member or found.members[0], arm=arm, sparsity=sparsity)
    print(f"{len(made):,} of {made.total:,} entries ({made.share:.3%}): {made.save(file)}")


@app.command()
def overlap(
    results: Annotated[list[Path], typer.Argument(help="Results of `skills localize`.")],
    arm: Annotated[str, typer.Option(help="learned or movement.")] = "learned",
    sparsity: Annotated[
        float | None, typer.Option(help="As asked; default: the smallest with 95% of the gain.")
    ] = None,
    out: Save = None,
    json: Json = False,
) -> None:
    """Do grafts of several members or tasks share their parameters, beyond chance?

    Example: workbench skills overlap out/ledger out/boxes
    """
    import workbench as wb

    found = [wb.Result.load(path) for path in results]
    finish(wb.skills.overlap(found, arm=arm, sparsity=sparsity), out, json)


@app.command()
def compose(
    base: Base,
    member: Members,
    prompts: Annotated[
        list[str], typer.Option(help="MEMBER=FILE, prompts of what each member learned.")
    ],
    graft: Annotated[list[str], typer.Option(help="MEMBER=FILE, as `skills graft` writes it.")],
    other: Others = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Do the skills of several members add up when their grafts are put together?

    Example: workbench skills compose BASE --member a=A --member b=B --prompts a=a.jsonl ...
    """
    import workbench as wb
    from workbench.skills import Graft, Skill

    members, tasks, grafts = (
        named(given, option)
        for given, option in ((member, "member"), (prompts, "prompts"), (graft, "graft"))
    )
    missing = set(members) - (set(tasks) & set(grafts))
    if missing:
        raise wb.WorkbenchError(
            f"Expected --prompts and --graft for every member; {sorted(missing)[0]} lacks one."
        )
    skills = [Skill(name, asked(Path(tasks[name])), Graft.load(grafts[name])) for name in members]
    run = _run(other, batch_size, device, dtype, seed)
    finish(wb.skills.compose(wb.load_family(base, dict(members)), skills, **run), out, json)


def _run(
    others: list[Path] | None, batch_size: int, device: str, dtype: str, seed: int
) -> dict[str, Any]:

    sets = [asked(path) for path in others or ()]
    return running(batch_size, device, dtype, seed) | {"others": sets}
