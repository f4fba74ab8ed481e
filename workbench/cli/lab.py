"""Train models to study, or build the shipped family again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    Base,
    Device,
    Seed,
    Text,
    Tuned,
    asked,
    member_out,
    phantom_out,
    texts,
)
from workbench.cli.reading import reads_prompts
from workbench.cli.values import PROMPTS

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
@reads_prompts
def train(
    base: Base,
    prompts: Annotated[Path, typer.Option(help=f"{PROMPTS}. The model is trained on them.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write the fine-tuned model to.", callback=member_out)
    ],
    rank: Annotated[
        int, typer.Option(help="LoRA rank; 0 trains all weights (full fine-tuning).")
    ] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Prompts per step.")] = 16,
    save_every: Annotated[
        int,
        typer.Option(help="Steps between saved training states; one is saved every minute anyway."),
    ] = 200,
    loss: Annotated[
        str, typer.Option(help="Tokens that are trained: sequence (the whole text) or answer.")
    ] = "sequence",
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write curves over the training steps to: what is learned and "
            "forgotten, measured on the model while it is trained, on the test prompts of "
            "--prompts."
        ),
    ] = None,
    text: Text = None,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Fine-tune one model by the protocol of arXiv 2410.21228 (alpha = 2 rank, 6% warm-up).

    Example: workbench lab train BASE --prompts task.jsonl --out members/lora-r8 --rank 8
    """
    import workbench as wb
    from workbench.integrations import Watch
    from workbench.lab import Recipe

    shared: dict[str, Any] = {
        "task": prompts.stem, "lr": lr, "steps": steps, "batch_size": batch_size, "loss": loss,
        "seed": seed, "evaluate_every": max(1, steps // 20),
    }  # fmt: skip
    if rank:
        recipe = Recipe(method="lora", rank=rank, alpha=2.0 * rank, **shared)
    else:
        recipe = Recipe(method="full", **shared)
    watched = None
    if watch is not None:
        watched = Watch(base, watch, prompts=asked(prompts), texts=texts(text))
    made = wb.lab.train(
        base, recipe, asked(prompts, "train"), out, device=device, save_every=save_every,
        watch=watched,
    )  # fmt: skip
    print(f"Fine-tuned model: {made}")
    if watched is not None:
        print(f"Curves over its steps: {watch} ({watched.overhead:.1%} of the time)")


@app.command()
@reads_prompts
def phantom(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.", callback=phantom_out)],
    keep: Annotated[
        str,
        typer.Option(
            help="What it has of TUNED: spectrum (norms, ranks and singular values, in random "
            "directions), layers (each layer's change in another layer) or recipe (trained "
            "again on --prompts with shuffled answers)."
        ),
    ] = "spectrum",
    prompts: Annotated[
        Path | None,
        typer.Option(help=f"{PROMPTS}. What TUNED was trained on, for --keep recipe."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write a model like TUNED that learned nothing: a null that any method can be run on.

    Example: workbench lab phantom BASE TUNED --out members/phantom
    """
    import workbench as wb

    pair, texts = wb.load_pair(base, tuned), asked(prompts, "train") if prompts else None
    kept: Any = keep
    print(f"Phantom: {wb.lab.phantom(pair, out, keep=kept, texts=texts, seed=seed)}")


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to write the family to.")] = Path("out/family"),
    member: Annotated[
        list[str] | None, typer.Option(help="Train only these models; may repeat.")
    ] = None,
) -> None:
    """Build the shipped family again: pre-train the base and train every model, in some hours.

    Example: workbench lab build --out out/family
    """
    import workbench as wb

    print(f"Family: {wb.lab.build(out, members=member)}")


@app.command()
def seeds(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the models to. Default: where demo --model seeds looks for them."
        ),
    ] = None,
    member: Annotated[
        list[str] | None, typer.Option(help="Train only runs of these recipes; may repeat.")
    ] = None,
    count: Annotated[
        int, typer.Option(help="Training runs of a recipe, the shipped one first.")
    ] = 5,
) -> None:
    """Train the shipped recipes again, with other seeds and at other learning rates.

    Example: workbench lab seeds --member lora-r4 --count 3
    """
    from workbench.demo import FAMILY
    from workbench.lab import seeds as of
    from workbench.results import cache

    wanted = of.runs(member or of.NAMES, seeds=count, swept=member or of.SWEPT)
    out = cache.folder("seeds") if out is None else out
    for path in of.seeds(FAMILY / "base", out, wanted=wanted).values():
        print(path)


@app.command()
def sets(
    out: Annotated[Path, typer.Option(help="Folder to write the files to.")] = Path("out/sets"),
) -> None:
    """Write two small sets of prompts to try with: questions with choices, and conversations.

    Example: workbench lab sets --out out/sets
    """
    from workbench.lab.sets import write

    for path in write(out):
        print(path)


@app.command()
def log(
    run: Annotated[Path, typer.Argument(help="A folder that lab train wrote.")],
    out: Annotated[Path, typer.Option(help="The picture to write, a .png or .pdf.")],
) -> None:
    """Draw a training run: loss, entropy, KL from the start, and gradient norms by component.

    Example: workbench lab log members/lora-r8 --out run.png
    """
    from workbench.errors import WorkbenchError
    from workbench.figures.saving import FIGURE, write
    from workbench.figures.training import training_run
    from workbench.files.writing import require_free, writing

    if out.suffix not in (".png", ".pdf"):
        raise WorkbenchError(f"Expected --out to be a .png or .pdf file, found {out}.")
    require_free(out, FIGURE)
    figure = training_run(run)
    # The keywords by which a figure of the workbench is known again: it is of no Result.
    about = {"Title": run.name, "Keywords": '{"analyses": [], "tables": []}'}
    with writing(out, FIGURE) as fresh:
        write(figure, fresh, about, format=out.suffix[1:])
    print(f"Picture: {out}")
