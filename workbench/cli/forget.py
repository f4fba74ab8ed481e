"""What was lost, what is only hidden? Retention, probes, revival, conjugates, paths, verdicts."""

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
    Text,
    Tuned,
    asked,
    finish,
    named,
    numbers,
    running,
    texts,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Lost = Annotated[
    Path, typer.Option("--prompts", help="Held-out prompts of what may be lost, JSONL or CSV.")
]
Task = Annotated[
    Path | None, typer.Option(help="Prompts of what was fine-tuned, to tell a switched task.")
]
Conjugates = Annotated[
    list[str] | None,
    typer.Option("--conjugate", help="NAME=FILE, the same prompts in another guise; may repeat."),
]
Lessons = Annotated[Path | None, typer.Option(help="Prompts to learn it again with, JSONL or CSV.")]
Never = Annotated[Path | None, typer.Option(help="A model that was trained without the task.")]
Others = Annotated[
    list[Path] | None, typer.Option("--other", help="Further prompts to score; may repeat.")
]
Sets = Annotated[
    list[Path] | None,
    typer.Option("--prompts", "--other", help="Prompts to score, JSONL or CSV; may repeat."),
]


@app.command()
def retention(
    base: Base,
    tuned: Tuned,
    prompts: Sets = None,
    text: Text = None,
    task: Annotated[
        Path | None, typer.Option(help="Prompts of what was fine-tuned, scored as well.")
    ] = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Scores on every prompt file, loss on text, KL on the base's own samples, item by item.

    Example: workbench forget retention BASE TUNED --prompts facts.jsonl --text wiki.txt
    """
    import workbench as wb

    run = running(batch_size, device, dtype, seed)
    own = [asked(task)] if task else []
    sets, named_task = [*own, *_sets(prompts)], own[0].name if own else None
    pair = wb.load_pair(base, tuned)
    result = wb.forgetting.retention(pair, sets, texts=texts(text), task=named_task, **run)
    finish(result, out, json)


@app.command()
def conjugate(
    base: Base,
    tuned: Tuned,
    prompts: Lost,
    conjugates: Conjugates = None,
    task: Task = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Does a lost answer come back where fine-tuning never was? arXiv 2309.10105.

    Example: workbench forget conjugate BASE TUNED --prompts facts.jsonl --conjugate leet=leet.jsonl
    """
    import workbench as wb

    result = wb.forgetting.conjugate(
        wb.load_pair(base, tuned),
        *(asked(prompts), _named(conjugates)),
        task=asked(task) if task else None,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def knowledge(
    base: Base,
    tuned: Tuned,
    prompts: Lost,
    sets: Annotated[int, typer.Option(help="Random sets of solved examples.")] = 10,
    shots: Annotated[int, typer.Option(help="Solved examples in front of a question.")] = 4,
    between: Annotated[
        str, typer.Option(help="What ends a solved example; \\n for a line's end.")
    ] = "\\n",
    group: Annotated[
        list[str] | None, typer.Option(help="A tag that names what is asked; may repeat.")
    ] = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Which questions are known well, barely, or not at all? SliCK, arXiv 2405.05904.

    Example: workbench forget knowledge BASE TUNED --prompts facts.jsonl
    """
    import workbench as wb

    run = running(batch_size, device, dtype, seed)
    pair, given = wb.load_pair(base, tuned), asked(prompts)
    told: dict[str, Any] = {"sets": sets, "shots": shots, "between": between.replace("\\n", "\n")}
    told["group"] = group or ()
    finish(wb.forgetting.knowledge(pair, given, **told, **run), out, json)


@app.command()
def interpolate(
    base: Base,
    tuned: Tuned,
    prompts: Annotated[Path, typer.Option(help="Prompts of what was learned, JSONL or CSV.")],
    other: Others = None,
    alphas: Annotated[str, typer.Option(help="Comma-separated, 0 and 1 among them.")] = "",
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """The straight path of weights from base to tuned, in and out of distribution (WiSE-FT).

    Example: workbench forget interpolate BASE TUNED --prompts task.jsonl --other facts.jsonl
    """
    import workbench as wb
    from workbench.forgetting.interpolate import ALPHAS

    result = wb.forgetting.interpolate(
        wb.load_pair(base, tuned),
        *(asked(prompts), _sets(other)),
        alphas=numbers(alphas) or ALPHAS,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def sequential(
    base: Base,
    member: Members = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--prompts", "--task", help="STAGE=FILE, what it learned; each stage."),
    ] = None,
    other: Others = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """The matrix of a chain of members, its forgetting and backward transfer.

    Example: workbench forget sequential BASE --member one=A --member two=B --prompts one=a.jsonl
    --prompts two=b.jsonl
    """
    import workbench as wb

    result = wb.forgetting.sequential(
        wb.load_family(base, named(member)),
        *(_named(tasks, "prompts"), _sets(other)),
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def probe(
    base: Base,
    tuned: Tuned,
    prompts: Lost,
    label: Annotated[str | None, typer.Option(help="A tag to read; default: the answer.")] = None,
    folds: Annotated[int, typer.Option(help="Of cross-validation.")] = 5,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Is the answer still in the stream? Linear probes of every layer with their controls.

    Example: workbench forget probe BASE TUNED --prompts facts.jsonl
    """
    import workbench as wb

    run = running(batch_size, device, dtype, seed)
    pair, given = wb.load_pair(base, tuned), asked(prompts)
    finish(wb.forgetting.probe(pair, given, label=label, folds=folds, **run), out, json)


@app.command()
def prune(
    base: Base,
    tuned: Tuned,
    prompts: Lost,
    task: Annotated[Path, typer.Option(help="Prompts of what was fine-tuned, JSONL or CSV.")],
    shares: Annotated[str, typer.Option(help="Comma-separated shares of the neurons.")] = "",
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Does it come up from under the neurons that the fine-tuned task uses? arXiv 2311.12786.

    Example: workbench forget prune BASE TUNED --prompts facts.jsonl --task task.jsonl
    """
    import workbench as wb
    from workbench.forgetting.prune import SHARES

    result = wb.forgetting.prune(
        wb.load_pair(base, tuned),
        *(asked(prompts), asked(task)),
        shares=numbers(shares) or SHARES,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def revive(
    base: Base,
    tuned: Tuned,
    prompts: Lost,
    lessons: Annotated[Path, typer.Option(help="Prompts to learn it again with.")],
    never: Never = None,
    runs: Annotated[int, typer.Option(help="Orders of the lessons.")] = 3,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 3e-4,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """How soon does it come back under training, against models that never knew?

    Example: workbench forget revive BASE TUNED --prompts facts.jsonl --lessons more-facts.jsonl
    """
    import workbench as wb

    result = wb.forgetting.revive(
        wb.load_pair(base, tuned),
        *(asked(prompts), asked(lessons, "train")),
        never=never,
        runs=runs,
        lr=rate,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def verdict(
    base: Base,
    tuned: Tuned,
    prompts: Lost,
    lessons: Lessons = None,
    conjugates: Conjugates = None,
    task: Task = None,
    never: Never = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Kept, suppressed or erased? Output, loss, probe, revival and conjugates in one grid.

    Example: workbench forget verdict BASE TUNED --prompts facts.jsonl --lessons more-facts.jsonl
    """
    import workbench as wb

    result = wb.forgetting.verdict(
        wb.load_pair(base, tuned),
        asked(prompts),
        lessons=asked(lessons, "train") if lessons else None,
        conjugates=_named(conjugates) if conjugates else None,
        task=asked(task) if task else None,
        never=never,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


def _sets(paths: list[Path] | None) -> list[Any]:
    return [asked(path) for path in paths or ()]


def _named(given: list[str] | None, option: str = "conjugate") -> dict[str, Any]:
    """NAME=FILE as name -> prompts."""
    return {name: asked(Path(path)) for name, path in named(given, option).items()}
