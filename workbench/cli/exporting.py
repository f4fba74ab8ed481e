"""What a finished run gives to others: a model card's section, runs of trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import card_out

Run = Annotated[Path, typer.Argument(help="The --out folder of a run.")]


def card(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="Write it to this Markdown file.", callback=card_out)
    ] = None,
) -> None:
    """Print a model card section for the Hugging Face Hub: what was compared and found.

    Example: workbench card out/demo --out card.md
    """
    import workbench as wb
    from workbench.export.card import CARD
    from workbench.files.writing import writing
    from workbench.results.run_folder import about_run, load

    text = wb.export.card(load(run), about_run(run))
    if out is None:
        print(text, end="")
        return
    with writing(out, CARD) as fresh:
        fresh.write_text(text, encoding="utf-8")
    print(out)


def export(
    run: Run,
    to: Annotated[str, typer.Option(metavar="wandb|mlflow|tensorboard", help="The tracker.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write to; for wandb and MLflow a run is added to it.")
    ],
    project: Annotated[
        str, typer.Option(help="The wandb project or MLflow experiment.")
    ] = "workbench",
) -> None:
    """Write a run as files of Weights & Biases, MLflow or TensorBoard: means, tables, figures.

    The provenance is written too. Nothing is sent: these are files as the tools write them
    themselves.

    Example: workbench export out/demo --to tensorboard --out out/tensorboard
    """
    import workbench as wb
    from workbench.errors import WorkbenchError
    from workbench.results.run_folder import load

    tools = {
        "wandb": lambda found: wb.export.to_wandb(found, project=project, dir=out),
        "mlflow": lambda found: wb.export.to_mlflow(found, out, experiment=project),
        "tensorboard": lambda found: wb.export.to_tensorboard(found, out),
    }
    if to not in tools:
        raise WorkbenchError(f"Expected --to {', '.join(tools)}, found {to!r}.")
    print(f"{to}: {tools[to](load(run))}")
