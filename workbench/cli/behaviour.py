"""What does it say now? Tokens, generated texts, emulated fine-tuning, worked steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.shared import (
    Base,
    Batch,
    Device,
    Dtype,
    Json,
    Save,
    Seed,
    Tuned,
    asked,
    finish,
    group_of,
    numbers,
    running,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Prompts = Annotated[Path, typer.Option(help="Prompts with answers, JSONL or CSV.")]


@app.command()
def tokens(
    base: Base,
    tuned: Tuned,
    prompts: Annotated[
        Path, typer.Option(help="Prompts, whose answers count, or a .txt whose lines do.")
    ],
    show: Annotated[int, typer.Option(help="Texts kept word by word.")] = 2,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Which words became likelier, and was the base sure of others? arXiv 2601.02151.

    Example: workbench behaviour tokens BASE TUNED --prompts task.jsonl
    """
    import workbench as wb

    run = running(batch_size, device, dtype, seed)
    pair = wb.load_pair(base, tuned)
    finish(wb.behaviour.tokens(pair, group_of(prompts), show=show, **run), out, json)


@app.command()
def generate(
    base: Base,
    tuned: Tuned,
    prompts: Annotated[
        Path | None, typer.Option(help="Texts to go on with; default: from the start token.")
    ] = None,
    n: Annotated[int, typer.Option(help="Texts of each arm.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens of a text at most.")] = 48,
    alpha: Annotated[
        float, typer.Option(help="Least share of the tuned model's largest probability.")
    ] = 0.1,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """What does the member write that the base does not? Contrastive generation, arXiv 2410.14765.

    Example: workbench behaviour generate BASE TUNED --n 32
    """
    import workbench as wb

    result = wb.behaviour.generate(
        wb.load_pair(base, tuned),
        None if prompts is None else group_of(prompts),
        n=n,
        length=length,
        alpha=alpha,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def emulate(
    base: Base,
    tuned: Tuned,
    large: Annotated[str, typer.Argument(help="A larger base with the same vocabulary.")],
    prompts: Prompts,
    large_tuned: Annotated[str | None, typer.Option(help="The larger model fine-tuned.")] = None,
    betas: Annotated[str, typer.Option(help="Comma-separated weights of the change.")] = "",
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """What would a larger model be, fine-tuned like this small one? arXiv 2310.12962.

    Example: workbench behaviour emulate BASE TUNED LARGE --prompts task.jsonl
    """
    import workbench as wb
    from workbench.behaviour.emulate import BETAS

    result = wb.behaviour.emulate(
        wb.load_pair(base, tuned),
        asked(prompts),
        large,
        large_tuned=large_tuned,
        betas=numbers(betas) or BETAS,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def faithfulness(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    between: Annotated[
        str, typer.Option(help="What parts question, steps and cue; \\n for a line's end.")
    ] = "\\n",
    filler: Annotated[str, typer.Option(help="Stands for a word of a step that is gone.")] = "...",
    mistakes: Annotated[bool, typer.Option(help="Also numbers that are off by one.")] = False,
    own_steps: Annotated[
        int, typer.Option(help="Tokens each side may write as its own steps; 0: the given.")
    ] = 0,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Does the answer follow from the worked steps? arXiv 2307.13702.

    Example: workbench behaviour faithfulness BASE TUNED --prompts sums.jsonl --mistakes
    """
    import workbench as wb

    result = wb.behaviour.faithfulness(
        wb.load_pair(base, tuned),
        asked(prompts),
        between=between.replace("\\n", "\n"),
        filler=filler,
        mistake=wb.tasks.off_by_one if mistakes else None,
        own_steps=own_steps,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)
