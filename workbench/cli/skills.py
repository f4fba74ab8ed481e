"""Verbs on grafts that no public function has by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import (
    Base,
    Batch,
    Device,
    Dtype,
    Json,
    Members,
    Save,
    Seed,
    finish,
    named,
)
from workbench.cli.reading import reads_prompts
from workbench.cli.values import asked


def graft(
    result: Annotated[Path, typer.Argument(help="The folder of a result of `skills localize`.")],
    file: Annotated[Path, typer.Argument(help="The safetensors file to write the graft to.")],
    member: Annotated[str, typer.Option(help="The model of the result. Default: the first.")] = "",
    arm: Annotated[str, typer.Option(help="Which mask: learned or movement.")] = "learned",
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="One of the sparsities that were run; default: the smallest with 95% of the gain."
        ),
    ] = None,
) -> None:
    """Write one graft of a result to a file of positions.

    Example: workbench skills graft out/localize ledger.safetensors --sparsity 0.01
    """
    import workbench as wb
    from workbench.skills import Graft

    found = wb.Result.load(result)
    made = Graft.of(found, member or found.members[0], arm=arm, sparsity=sparsity)
    print(f"{len(made):,} of {made.total:,} entries ({made.share:.3%}): {made.save(file)}")


@reads_prompts
def compose(
    base: Base,
    member: Members,
    prompts: Annotated[
        list[str],
        typer.Option(
            help="MEMBER=FILE: prompts of what that model learned; repeat it for every model."
        ),
    ],
    graft: Annotated[
        list[str], typer.Option(help="MEMBER=FILE: a graft that `skills graft` wrote.")
    ],
    others: Annotated[
        list[Path] | None,
        typer.Option("--others", "--other", help="Further prompts that are scored; may repeat."),
    ] = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Do the skills of several fine-tuned models add up when their grafts are combined?

    Example: workbench skills compose BASE --member a=A --member b=B --prompts a=a.jsonl
    --graft a=a.safetensors ...
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
            f"Expected --prompts and --graft for every --member; {sorted(missing)[0]} lacks one."
        )
    skills = [Skill(name, asked(Path(tasks[name])), Graft.load(grafts[name])) for name in members]
    result = wb.skills.compose(
        wb.load_family(base, dict(members)),
        skills,
        others=[asked(path) for path in others or ()],
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    finish(result, out, json)
