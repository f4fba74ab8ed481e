"""What a finished run gives to others: a model card's section, runs of trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import card_out

Run = Annotated[Path, typer.Argument(help="--out folder of a run.")]


def card(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="A Markdown file for it.", callback=card_out)
    ] = None,
) -> None:
    """A section for a model card on the Hugging Face Hub: what was compared, and what was found.

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
    to: Annotated[str, typer.Option(metavar="wandb|mlflow|tensorboard", help="The tool.")],
    out: Annotated[
        Path, typer.Option(help="Folder it is written to; of wandb and MLflow a run is added.")
    ],
    project: Annotated[
        str, typer.Option(help="wandb's project, or MLflow's experiment.")
    ] = "workbench",
) -> None:
    """Means, tables, figures and provenance for Weights & Biases, MLflow or TensorBoard.

    Nothing is sent: files are written, as these tools write them themselves.

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
