"""The command line: one verb per job; each parses, builds the family and calls the library.

Exit codes: 0 done; 1 an error of the workbench itself; 2 bad input, said in one sentence; 3 the
preflight found what makes a comparison meaningless; 130 interrupted.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workbench.cli import config as run_config
from workbench.cli import edits, exporting, kept_results, lab, skills
from workbench.cli.options import (
    WHERE,
    Base,
    Device,
    DryRun,
    Dtype,
    Json,
    Members,
    On,
    Only,
    Out,
    Phantoms,
    Save,
    Seed,
    Steps,
    Text,
    Tuned,
    asked,
    members_of,
    named,
    run_study,
    steps_of,
    texts,
)
from workbench.cli.printing import say, show
from workbench.cli.reading import reads_prompts
from workbench.cli.values import PROMPTS
from workbench.cli.verbs import FAMILIES, group
from workbench.version import __version__

# What each group of verbs is about; its verbs are the public functions of a family.
GROUPS = {
    "spectral": "What did fine-tuning do to the weights?",
    "tuco": "How much did fine-tuning contribute to an answer (tuned contribution)?",
    "patch": "Where in the network is the behaviour? Patch activations or parameters.",
    "skills": "How few of the changed parameters carry the new skill?",
    "forget": "What did fine-tuning make the model forget, and what is only hidden?",
    "behaviour": "How did the texts that the model writes change?",
    "edit": "Which edit gives back what was forgotten? Measure it, and write it.",
}
BY_HAND = {
    "skills": {"graft": skills.graft, "compose": skills.compose},
    "edit": {"save": edits.save, "merge": edits.merge},
}


class Workbench(TyperGroup):
    """A family's own name is its group's, too."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        named = {family: name for name, family in FAMILIES.items()}
        return super().get_command(ctx, named.get(cmd_name, cmd_name))


app = typer.Typer(
    cls=Workbench,
    help="What did fine-tuning do to this model? Compare a base model with its fine-tuned "
    "checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for name, about in GROUPS.items():
    app.add_typer(group(name, BY_HAND.get(name)), name=name, help=about)
app.add_typer(lab.app, name="lab", help=lab.__doc__)


def _version(asked: bool) -> None:
    if asked:
        print(f"workbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only results and warnings.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Also print what the libraries report while they load."),
    ] = False,
) -> None:
    import logging

    from workbench.log import say as heard

    heard(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


KEPT = {"demo", "compare", "lab"}  # commands that keep what they have done
GOES_ON = "the same command resumes from here."
STARTS_AGAIN = (
    "nothing of a single analysis is saved, so the same command starts it again; workbench compare "
    "saves every analysis that has finished."
)


def main() -> None:
    """Entry point: bad input ends in one sentence and exit code 2, never in a traceback."""
    from workbench.errors import WorkbenchError, unpanicked

    for stream in (sys.stdout, sys.stderr):
        # What a terminal's own code cannot say, as in an ASCII locale, is written as escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with unpanicked():
            app()
    except (WorkbenchError, OSError) as error:
        # What the system refuses, a vanished file or a full disk, is no fault of the program.
        print(f"workbench: {WorkbenchError(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as ended:
        # Typer makes an exit of ctrl-C by itself.
        if isinstance(ended, SystemExit) and ended.code != 130:
            raise
        said = GOES_ON if KEPT & set(sys.argv[1:]) else STARTS_AGAIN
        print(f"workbench: interrupted; {said}", file=sys.stderr)
        sys.exit(130)


@app.command()
def demo(
    out: Out = Path("out/demo"),
    model: Annotated[
        str,
        typer.Option(
            help="family: the shipped family, takes minutes; seeds: its recipes over seeds and "
            "learning rates, first trains 32 models; smollm2: first trains 3 models."
        ),
    ] = "family",
    text: Text = None,
    full: Annotated[bool, typer.Option(help="Use all prompts and grids of the family.")] = False,
    steps: Annotated[int, typer.Option(help="Training steps of each SmolLM2 model.")] = 300,
    runs: Annotated[int, typer.Option(help="Training runs of each SmolLM2 recipe.")] = 1,
    member: Annotated[
        list[str] | None,
        typer.Option(help="Train and compare only these SmolLM2 models; may repeat."),
    ] = None,
    only: Only = None,
    dry_run: DryRun = False,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    on: Annotated[
        str, typer.Option(help=f"{WHERE} Default: up to 4 processes for the family on CPUs.")
    ] = "",
) -> None:
    """Compare LoRA with full fine-tuning on the shipped family, or on SmolLM2-135M.

    Example: workbench demo --out out/demo
    """
    from workbench.demo import fast_bfloat16, seeds_study, shipped_study, smollm2_study
    from workbench.errors import WorkbenchError
    from workbench.loaders.devices import cores
    from workbench.study.cluster import place

    # The family's models are small: a process a core is faster than a process of many threads.
    several = min(cores(), 4) if model != "smollm2" and device == "cpu" else 1
    on = on or (f"local:{several}" if several > 1 else "here")
    place(on)

    shared: dict[str, Any] = {"device": device, "dtype": dtype}
    if model == "family":
        if full:
            say(
                "All grids: on first use a chain of two fine-tunes is trained, for some minutes; "
                "--dry-run leaves it out.",
                error=True,
            )
        study = shipped_study(quick=not full, train=not dry_run, **shared)
        title = "The shipped family"
        title += "" if full else " (demo: few prompts and sites, so the intervals are wide)"
    elif model == "seeds":
        say(
            "The recipes over seeds: on first use 32 models are trained, each for about four "
            "minutes on one core; an interrupted run resumes.",
            error=True,
        )
        if dry_run:
            return
        study, title = seeds_study(**shared), "The shipped recipes over seeds and learning rates"
    elif model == "smollm2":
        slow = device == "cpu" and not fast_bfloat16()
        low, high = (round(m * steps / 300 * (6 if slow else 1)) for m in (5, 15))
        say(
            f"SmolLM2-135M: on first use each fine-tuned model is trained for {steps} steps, which "
            f"takes about {low} to {high} minutes on 2 cores of this kind; an interrupted run "
            "resumes.",
            error=True,
        )
        if dry_run:
            return
        study = smollm2_study(
            texts(text), steps=steps, seeds=runs, only_members=member or (), **shared
        )
        title = "SmolLM2-135M-Instruct on boxes"
    else:
        raise WorkbenchError(f"Expected --model family, seeds or smollm2, found {model!r}.")
    # `workbench figures OUT` writes PDFs, too.
    run_study(study.narrowed(only or ()), out, dry_run, json, title, on, ("png",))


@app.command()
def check(
    base: Base,
    tuned: Tuned,
    run: Annotated[
        bool,
        typer.Option("--run", help="Also compare the logits with those of transformers and peft."),
    ] = False,
    json: Json = False,
) -> None:
    """Check whether two checkpoints can be compared, before any analysis runs.

    Example: workbench check BASE TUNED
    """
    from workbench.loaders import Checkpoint, CheckpointPair, load_pair
    from workbench.loaders.checkpoint import is_adapter

    ours = Checkpoint.parse(base)
    if is_adapter(tuned):
        pair = CheckpointPair(ours, Checkpoint(ours.reference, tuned, ours.revision))
    else:
        pair = CheckpointPair(ours, Checkpoint.parse(tuned))
    report = pair.check(run=run or None)
    show(report.table, json)
    if report.ok:
        load_pair(base, tuned)
        if not json:
            warned = report.table.loc[report.table["status"] == "warn", "item"]
            said = "These checkpoints can be compared"
            say(
                f"{said}, but read the warnings on: {', '.join(warned)}."
                if len(warned)
                else f"{said}."
            )
    else:
        raise typer.Exit(3)


@app.command()
@reads_prompts
def compare(
    ctx: typer.Context,
    base: Base,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A .yaml file with these options; options on the command line take precedence.",
            callback=run_config.chosen,
            is_eager=True,
        ),
    ] = None,
    member: Members = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", "--task", help=f"{PROMPTS}. They test the fine-tuned task."),
    ] = None,
    text: Text = None,
    steps: Steps = None,
    out: Out = Path("out/compare"),
    only: Only = None,
    dry_run: DryRun = False,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    phantoms: Phantoms = 0,
    on: On = "here",
) -> None:
    """Run every analysis on a base and its fine-tuned models, and write one report.

    Example: workbench compare BASE --member full=FOLDER --member lora-r8=ADAPTER --prompts t.jsonl

    The options can also be given in a file, --config run.yaml, in which paths are relative to the
    file's own folder. The options of a run are saved as config.yaml in the --out folder.

    \b
      base: ../models/base              # or a hub id; every option has its own name
      member: {full: ../models/full, lora-r8: ../adapters/r8}
      prompts: task.jsonl
      out: ../out/mine
      only: [spectral.intruders, forgetting.retention]   # default: everything
      options:                          # arguments of the analyses, as in Python
        spectral.intruders: {k: 5, eps: 0.4}
    """
    from workbench.study.study import Study

    options = run_config.read(config)["options"] if config else {}
    along, members = steps_of(base, steps), named(member)
    if along is not None and not members:
        members = {"end": [*along.members.values()][-1]}
    family, left_out = members_of(base, members)
    study = Study(
        family,
        task=asked(prompts) if prompts else None,
        texts=texts(text),
        steps=along,
        device=device,
        dtype=dtype,
        seed=seed,
        options=options,
        phantoms=phantoms,
    )
    asked_for = run_config.resolved(ctx.params, options, out)
    study = study.narrowed(only or ())
    run_study(study, out, dry_run, json, on=on, left_out=left_out, options=asked_for)


@app.command()
def truth(
    only: Annotated[
        list[str] | None,
        typer.Option(help="Ask only these methods, for example patching or tuco; may repeat."),
    ] = None,
    phantoms: Annotated[
        int, typer.Option(help="Members that learned nothing, of each pair that learned something.")
    ] = 1,
    draws: Annotated[
        int, typer.Option(help="Samples of prompts by which stated intervals are tried; 0: none.")
    ] = 0,
    workers: Annotated[int, typer.Option(help="Processes that ask; 0: one a core, at most 8.")] = 0,
    out: Save = None,
    json: Json = False,
    seed: Seed = 0,
) -> None:
    """How often is each method right? Asks it of compiled pairs whose change is known.

    Example: workbench truth --only patching --out out/truth
    """
    import workbench as wb
    from workbench.loaders.devices import cores
    from workbench.scoreboard.summary import summary

    workers = workers or min(8, cores())
    found = wb.truth(only=only or (), phantoms=phantoms, draws=draws, workers=workers, seed=seed)
    if out is not None:
        found.save(out)
    if json:
        print(found.table.to_json(orient="records", lines=True), end="")
        return
    show(summary(found), json)
    print(f"Saved: {out}" if out is not None else "(--out FOLDER saves the table)")


for verb in (
    kept_results.report,
    kept_results.view,
    kept_results.findings,
    kept_results.figures,
    exporting.card,
    exporting.export,
):
    app.command()(verb)
