"""The command line: one verb per job; each parses, builds the family and calls the library.

Exit codes: 0 done; 1 an error of the workbench itself; 2 bad input, said in one sentence; 3 the
preflight found what makes a comparison meaningless; 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
spectral = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
lab = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    spectral, name="spectral", help="Analyses of the weights: intruders, spectrum, scale."
)
app.add_typer(lab, name="lab", help="Train members to study, or build the shipped family.")

Base = Annotated[str, typer.Argument(help="Folder, .gguf file, hub id@revision, or BASE+ADAPTER.")]
Tuned = Annotated[str, typer.Argument(help="As BASE, or a PEFT LoRA adapter folder.")]
Out = Annotated[Path, typer.Option(help="Folder for results, figures and the report.")]
Save = Annotated[Path | None, typer.Option("--out", help="Folder to save the Result in.")]
Json = Annotated[bool, typer.Option("--json", help="Print the table as JSON lines.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16, for every run of a model.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]
Only = Annotated[
    list[str] | None, typer.Option(help="Only this analysis, e.g. tuco.contribution; may repeat.")
]
Members = Annotated[
    list[str] | None, typer.Option("--member", help="NAME=REFERENCE; once per member.")
]
Prompts = Annotated[
    Path | None, typer.Option(help="Prompts with answers of the fine-tuned task, JSONL.")
]
Text = Annotated[
    Path | None, typer.Option(help="Pre-training-like text file; default: samples of the base.")
]


def main() -> None:
    """Entry point: bad input ends in one sentence and exit code 2, never in a traceback."""
    from workbench.errors import WorkbenchError

    try:
        app()
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("workbench: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


@app.command()
def demo(
    out: Out = Path("out/demo"),
    model: Annotated[
        str, typer.Option(help="family (shipped, a minute) or smollm2 (trains 3 members).")
    ] = "family",
    text: Text = None,
    full: Annotated[bool, typer.Option(help="All prompts and lambdas of the family.")] = False,
    steps: Annotated[int, typer.Option(help="Training steps of each SmolLM2 member.")] = 300,
    member: Annotated[list[str] | None, typer.Option(help="Only these SmolLM2 members.")] = None,
    only: Only = None,
    dry_run: DryRun = False,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Compare LoRA with full fine-tuning on the shipped family, or on SmolLM2-135M.

    Example: workbench demo --out out/demo
    """
    from dataclasses import replace

    from workbench.demo import fast_bfloat16, shipped_study, smollm2_study
    from workbench.errors import WorkbenchError

    shared: dict[str, Any] = {"device": device, "dtype": dtype}
    if model == "family":
        study, title = shipped_study(quick=not full, **shared), "The shipped family"
    elif model == "smollm2":
        slow = device == "cpu" and not fast_bfloat16()
        low, high = (round(m * steps / 300 * (6 if slow else 1)) for m in (5, 15))
        print(
            f"SmolLM2-135M: its members are trained for {steps} steps each on first use, about "
            f"{low} to {high} minutes each on 2 cores of this kind; a run that is cut off goes on.",
            file=sys.stderr,
        )
        if dry_run:
            return
        study = smollm2_study(_texts(text), steps=steps, only_members=member or (), **shared)
        title = "SmolLM2-135M-Instruct on boxes"
    else:
        raise WorkbenchError(f"Expected --model family or smollm2, found {model!r}.")
    _study(replace(study, only=tuple(only or ())), out, dry_run, json, title)


@app.command()
def check(base: Base, tuned: Tuned, json: Json = False) -> None:
    """Preflight: do these two checkpoints belong together?

    Example: workbench check data/family/base data/family/lora-r4
    """
    from workbench.loaders import Checkpoint, CheckpointPair, load_pair
    from workbench.loaders.checkpoint import is_adapter

    ours = Checkpoint.parse(base)
    if is_adapter(tuned):
        pair = CheckpointPair(ours, Checkpoint(ours.reference, tuned, ours.revision))
    else:
        pair = CheckpointPair(ours, Checkpoint.parse(tuned))
    report = pair.check()
    _show(report.table, json)
    if report.ok:
        load_pair(base, tuned)
    else:
        raise typer.Exit(3)


@spectral.command()
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

    Example: workbench spectral intruders data/family/base data/family/lora-r1
    """
    import workbench as wb

    options: dict[str, Any] = {"k": k, "eps": eps, "side": side, "method": method, "nulls": nulls}
    _finish(
        wb.spectral.intruders(wb.load_pair(base, tuned), device=device, seed=seed, **options),
        out,
        json,
    )


@spectral.command()
def spectrum(
    base: Base, tuned: Tuned, out: Save = None, json: Json = False, device: Device = "cpu"
) -> None:
    """Size and effective rank of every change.

    Example: workbench spectral spectrum data/family/base data/family/full
    """
    import workbench as wb

    _finish(wb.spectral.delta_spectrum(wb.load_pair(base, tuned), device=device), out, json)


@spectral.command()
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

    grid = _numbers(lambdas) or LAMBDAS
    result = wb.spectral.scale_intruders(
        wb.load_pair(base, tuned),
        wb.tasks.PromptSet.load(prompts),
        texts=_texts(text),
        lambdas=grid,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    _finish(result, out, json)


@app.command()
def tuco(
    base: Base,
    tuned: Tuned,
    prompts: Annotated[
        list[Path], typer.Option(help="A group: .jsonl, .csv, or a .txt of lines. May repeat.")
    ],
    alphas: Annotated[
        str,
        typer.Option(help="Instead score prompts with answers at these scales, e.g. 0,0.9,1,1.1."),
    ] = "",
    tokens: Annotated[int, typer.Option(help="Prompts per group profiled token by token.")] = 2,
    streamed: Annotated[
        bool, typer.Option(help="Read the base block by block; no OutputCo.")
    ] = False,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """How much of each answer did fine-tuning contribute? arXiv 2506.23423.

    Example: workbench tuco BASE TUNED --prompts task.jsonl --prompts plain.txt
    """
    import workbench as wb

    named = {path.stem: path for path in prompts}
    if len(named) < len(prompts):
        raise wb.WorkbenchError("Two files of --prompts have the same name; rename one.")
    if alphas and (len(prompts) > 1 or prompts[0].suffix not in (".jsonl", ".csv") or streamed):
        raise wb.WorkbenchError(
            "--alphas scores one group with answers (.jsonl or .csv) on both models in memory."
        )
    pair, groups = wb.load_pair(base, tuned), {name: _group(p) for name, p in named.items()}
    shared: dict[str, Any] = {"device": device, "dtype": dtype, "seed": seed}
    if alphas:
        (only,) = groups.values()
        result = wb.tuco.scaling(pair, only, alphas=_numbers(alphas), **shared)
    else:
        where = "disk" if streamed else "memory"
        result = wb.tuco.contribution(pair, groups, tokens=tokens, base=where, **shared)
    _finish(result, out, json)


@app.command()
def compare(
    base: Base,
    member: Members = None,
    task: Prompts = None,
    text: Text = None,
    out: Out = Path("out/compare"),
    only: Only = None,
    dry_run: DryRun = False,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Run every analysis over a family and write one report.

    Example: workbench compare BASE --member full=FOLDER --member lora-r8=ADAPTER --task task.jsonl
    """
    import workbench as wb
    from workbench.compare import Study

    members = _named(member)
    study = Study(
        wb.load_family(base, members),
        task=wb.tasks.PromptSet.load(task) if task else None,
        texts=_texts(text),
        device=device,
        dtype=dtype,
        seed=seed,
        only=tuple(only or ()),
    )
    _study(study, out, dry_run, json)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders of saved Results.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
) -> None:
    """One self-contained HTML page from saved Results.

    Example: workbench report out/demo/results/* --out report.html
    """
    import workbench as wb

    print(f"Report: {wb.report([wb.Result.load(folder) for folder in results], out)}")


@lab.command()
def train(
    base: Base,
    prompts: Annotated[Path, typer.Option(help="Training prompts with answers, JSONL.")],
    out: Annotated[Path, typer.Option(help="Folder for the member.")],
    rank: Annotated[int, typer.Option(help="LoRA rank; 0 for full fine-tuning.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Prompts per step.")] = 16,
    loss: Annotated[str, typer.Option(help="sequence (whole text) or answer.")] = "sequence",
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train one member by the paper's protocol (alpha = 2 rank, linear schedule, 6% warm-up).

    Example: workbench lab train BASE --prompts task.jsonl --out members/lora-r8 --rank 8
    """
    import workbench as wb
    from workbench.lab import Recipe

    shared: dict[str, Any] = {
        "task": prompts.stem, "lr": lr, "steps": steps, "batch_size": batch_size, "loss": loss,
        "seed": seed, "evaluate_every": max(1, steps // 20),
    }  # fmt: skip
    if rank:
        recipe = Recipe(method="lora", rank=rank, alpha=2.0 * rank, **shared)
    else:
        recipe = Recipe(method="full", **shared)
    source = wb.Checkpoint.parse(base).folder
    made = wb.lab.train(str(source), recipe, wb.tasks.PromptSet.load(prompts), out, device=device)
    print(f"Member: {made}")


@lab.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder for the family.")] = Path("data/family"),
    member: Annotated[list[str] | None, typer.Option(help="Only these members.")] = None,
) -> None:
    """Make the shipped family again: pre-train the base, train every member. About an hour.

    Example: workbench lab build --out data/family
    """
    import workbench as wb

    print(f"Family: {wb.lab.build(out, members=member)}")


def _finish(result: Any, out: Path | None, json: bool) -> None:
    from workbench import figures

    if out is not None:
        result.save(out)
    if json:
        print(result.table.to_json(orient="records", lines=True), end="")
    else:
        print(figures.headline(result))
        for note in result.provenance.notes:
            print(f"note: {note}")
        print(f"Saved: {out}" if out is not None else "(--out FOLDER keeps the table)")


def _study(study: Any, out: Path, dry_run: bool, json: bool, title: str | None = None) -> None:
    from workbench.compare import compare, plan

    if dry_run:
        _show(plan(study), json)
        return
    made = compare(study, out, title=title)
    if json:
        import pandas as pd

        _show(pd.DataFrame({"report": [str(made)], "results": [str(out / "results")]}), json)
    else:
        print(f"Report: {made}")


def _group(path: Path) -> Any:
    """One group of prompts: a prompt set, or the lines of a text file."""
    import workbench as wb

    if path.suffix in (".jsonl", ".csv"):
        return wb.tasks.PromptSet.load(path)
    pieces = wb.tasks.read_text(path, characters=1, most=100_000)
    return [piece.strip() for piece in pieces if piece.strip()]


def _show(table: Any, json: bool) -> None:
    if json:
        print(table.to_json(orient="records", lines=True), end="")
    else:
        print(table.to_string(index=False, justify="left"))


def _named(members: list[str] | None) -> dict[str, str]:
    from workbench.errors import WorkbenchError

    named = {}
    for one in members or []:
        name, equals, reference = one.partition("=")
        if not (name and equals and reference) or name in named:
            raise WorkbenchError(
                f"Expected --member NAME=REFERENCE with a new name, found {one!r}."
            )
        named[name] = reference
    return named


def _numbers(text: str) -> tuple[float, ...]:
    from workbench.errors import WorkbenchError

    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise WorkbenchError(f"Expected numbers separated by commas, found {text!r}.") from error


def _texts(path: Path | None) -> list[str] | None:
    from workbench.tasks.measure import read_text

    return None if path is None else read_text(path)


if __name__ == "__main__":
    main()
