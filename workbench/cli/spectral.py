"""Analyses of the weights: intruders, spectrum, scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.shared import (
    Base,
    Device,
    Dtype,
    Json,
    Save,
    Seed,
    Text,
    Tuned,
    asked,
    finish,
    numbers,
    texts,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def intruders(
    base: Base,
    tuned: Tuned,
    k: Annotated[int, typer.Option(help="Top singular vectors per matrix.")] = 10,
    eps: Annotated[float, typer.Option(help="Cosine below which a vector is new.")] = 0.5,
    side: Annotated[str, typer.Option(help="left (paper), right or joint.")] = "left",
    method: Annotated[
        str, typer.Option(help="auto, exact (two dense SVDs) or decide (bounds).")
    ] = "auto",
    nulls: Annotated[bool, typer.Option(help="Count random changes of the same norm too.")] = True,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Count intruder dimensions, arXiv 2410.21228.

    Example: workbench spectral intruders BASE TUNED
    """
    import workbench as wb

    options: dict[str, Any] = {"k": k, "eps": eps, "side": side, "method": method, "nulls": nulls}
    finish(
        wb.spectral.intruders(wb.load_pair(base, tuned), device=device, seed=seed, **options),
        out,
        json,
    )


@app.command()
def spectrum(
    base: Base, tuned: Tuned, out: Save = None, json: Json = False, device: Device = "cpu"
) -> None:
    """Size and effective rank of every change.

    Example: workbench spectral spectrum BASE TUNED
    """
    import workbench as wb

    finish(wb.spectral.delta_spectrum(wb.load_pair(base, tuned), device=device), out, json)


@app.command()
def scale(
    base: Base,
    tuned: Tuned,
    prompts: Annotated[Path, typer.Option(help="Prompts with answers, JSONL.")],
    text: Text = None,
    lambdas: Annotated[str, typer.Option(help="Comma-separated scales.")] = "",
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Scale each matrix's top intruder and measure task and retention, with controls.

    Example: workbench spectral scale BASE TUNED --prompts task.jsonl --lambdas 0,0.5,1
    """
    import workbench as wb
    from workbench.spectral.scale import LAMBDAS

    grid = numbers(lambdas) or LAMBDAS
    result = wb.spectral.scale_intruders(
        wb.load_pair(base, tuned),
        asked(prompts),
        texts=texts(text),
        lambdas=grid,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    finish(result, out, json)
