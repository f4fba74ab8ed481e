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
from workbench.cli import exporting, lab, skills
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
    Seed,
    Text,
    Tuned,
    asked,
    members_of,
    named,
    page_out,
    report_out,
    run_study,
    show,
    texts,
)
from workbench.cli.reading import reads_prompts
from workbench.cli.values import PROMPTS
from workbench.cli.verbs import FAMILIES, group
from workbench.version import __version__

# What each group of verbs is about; its verbs are the public functions of a family.
GROUPS = {
    "spectral": "What did fine-tuning do to the weights? Intruders, spectrum, scale.",
    "tuco": "How much of each answer did fine-tuning contribute, and what if more?",
    "patch": "Where does the behaviour live? Activations, parameters of one run put into another.",
    "skills": "How few parameters carry the skill? Grafts, restoration, composition, compression.",
    "forget": "What was lost, what is only hidden? Retention, probes, revival, paths, verdicts.",
    "behaviour": "What does it say now? Tokens, written texts, emulated fine-tuning, worked steps.",
}
BY_HAND = {"skills": {"graft": skills.graft, "compose": skills.compose}}


class Workbench(TyperGroup):
    """A family's own name is its group's, too."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        named = {family: name for name, family in FAMILIES.items()}
        return super().get_command(ctx, named.get(cmd_name, cmd_name))


app = typer.Typer(
    cls=Workbench,
    help="What did fine-tuning do to this model? A base and its fine-tuned checkpoints compared.",
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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only results and warnings.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also what the libraries say of a loading.")
    ] = False,
) -> None:
    import logging

    from workbench.log import say

    say(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


KEPT = {"demo", "compare", "lab"}  # commands that keep what they have done
GOES_ON = "the same command goes on from here."
STARTS_AGAIN = (
    "of one analysis nothing is kept, and the same command begins it again; workbench compare "
    "keeps every analysis that is done."
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
        str, typer.Option(help="family (shipped, minutes) or smollm2 (trains 3 members).")
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
    on: Annotated[str, typer.Option(help=f"{WHERE} By default the cores share it.")] = "",
) -> None:
    """Compare LoRA with full fine-tuning on the shipped family, or on SmolLM2-135M.

    Example: workbench demo --out out/demo
    """
    from workbench.demo import fast_bfloat16, shipped_study, smollm2_study
    from workbench.errors import WorkbenchError
    from workbench.loaders.devices import cores
    from workbench.study.cluster import place

    # The family's models are small: a process a core is faster than a process of many threads.
    several = min(cores(), 4) if model == "family" and device == "cpu" else 1
    on = on or (f"local:{several}" if several > 1 else "here")
    place(on)

    shared: dict[str, Any] = {"device": device, "dtype": dtype}
    if model == "family":
        study, title = shipped_study(quick=not full, **shared), "The shipped family"
        title += "" if full else " (demo: few prompts and sites, wide intervals)"
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
        study = smollm2_study(texts(text), steps=steps, only_members=member or (), **shared)
        title = "SmolLM2-135M-Instruct on boxes"
    else:
        raise WorkbenchError(f"Expected --model family or smollm2, found {model!r}.")
    # `workbench figures OUT` writes PDFs, too.
    run_study(study.narrowed(only or ()), out, dry_run, json, title, on, ("png",))


@app.command()
def check(
    base: Base,
    tuned: Tuned,
    run: Annotated[
        bool, typer.Option("--run", help="Hold logits against a plain transformers and peft, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Preflight: do these two checkpoints belong together?

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
            said = "These checkpoints are comparable"
            print(
                f"{said}, but read the warnings: {', '.join(warned)}."
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
            help="A .yaml file that says these options; what is typed wins.",
            callback=run_config.chosen,
            is_eager=True,
        ),
    ] = None,
    member: Members = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", "--task", help=f"{PROMPTS}; of the fine-tuned task."),
    ] = None,
    text: Text = None,
    out: Out = Path("out/compare"),
    only: Only = None,
    dry_run: DryRun = False,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    on: On = "here",
) -> None:
    """Run every analysis over a family and write one report.

    Example: workbench compare BASE --member full=FOLDER --member lora-r8=ADAPTER --prompts t.jsonl

    Or with --config run.yaml, whose paths are taken from where the file lies; OUT keeps what was
    run as config.yaml:

    \b
      base: ../models/base              # or a hub id; every option by its name
      member: {full: ../models/full, lora-r8: ../adapters/r8}
      prompts: task.jsonl
      out: ../out/mine
      only: [spectral.intruders, forgetting.retention]   # default: everything
      options:                          # arguments of analyses, as Python takes them
        spectral.intruders: {k: 5, eps: 0.4}
    """
    from workbench.study.study import Study

    options = run_config.read(config)["options"] if config else {}
    family, left_out = members_of(base, named(member))
    study = Study(
        family,
        task=asked(prompts) if prompts else None,
        texts=texts(text),
        device=device,
        dtype=dtype,
        seed=seed,
        options=options,
    )
    asked_for = run_config.resolved(ctx.params, options, out)
    study = study.narrowed(only or ())
    run_study(study, out, dry_run, json, on=on, left_out=left_out, options=asked_for)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders of saved Results.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.", callback=report_out)] = Path(
        "report.html"
    ),
) -> None:
    """One self-contained HTML page from saved Results.

    Example: workbench report out/demo/results/* --out report.html
    """
    import workbench as wb

    print(f"Report: {wb.report(results, out)}")


@app.command()
def view(
    run: Annotated[Path, typer.Argument(help="The --out folder of a run, or a report's file.")],
) -> None:
    """Open a run's report in the browser. It opens the file: nothing is served or loaded.

    Example: workbench view out/demo
    """
    import webbrowser

    from workbench.errors import WorkbenchError

    page = run / "report.html" if run.is_dir() else run
    if page.suffix != ".html" or not page.is_file():
        raise WorkbenchError(
            f"Expected a run's folder with report.html in it, or an .html file, found {run}; "
            "`workbench report` writes one from saved results."
        )
    opened = webbrowser.open(page.resolve().as_uri())
    print(f"Report: {page}" + ("" if opened else " (no browser could be started; open this file)"))


@app.command()
def findings(
    runs: Annotated[list[Path], typer.Argument(help="--out folders of runs, of any bases.")],
    out: Annotated[
        Path | None, typer.Option(help="A Markdown file for the table.", callback=page_out)
    ] = None,
    json: Json = False,
) -> None:
    """Which published findings do these results show? A verdict a claim, by rule.

    Example: workbench findings out/demo --out findings.md
    """
    from workbench.files.writing import writing
    from workbench.findings import PAGE, by_base, page

    tables = by_base(runs)
    if out is not None:
        with writing(out, PAGE) as fresh:
            fresh.write_text(page(tables), encoding="utf-8")
        print(out)
        return
    import pandas as pd

    whole = pd.concat([t.assign(base=name) for name, t in tables.items()], ignore_index=True)
    if json:
        show(whole, json)
    else:
        firsts = whole.drop_duplicates(["base", "claim"])
        show(firsts[["base", "claim", "source", "verdict", "seeds"]], json)


@app.command()
def figures(
    source: Annotated[
        Path, typer.Argument(help="A .yaml file of panels, or the --out folder of a run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="For a file: the name without .png; for a run: the figures' folder."),
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="png, pdf, or both; png only beside a report.")
    ] = None,
) -> None:
    """Draw from stored results, without a model: a paper's panels, or a run's figures and report.

    Example: workbench figures panels.yaml --out out/panels

    The file of panels, which are lettered, fill rows from the left and show members alike:

    \b
      results: out/mine/results         # folder of saved results, from where this file lies
      style: paper                      # PNG at 300 dpi and PDF; notebook: PNG for a screen
      size: wide                        # column (3.4 in), wide (7 in), or [width, height]
      columns: 2
      panels:
        - analysis: spectral.intruders  # a folder of results
          figure: count                 # one of its figures; default: the first
          members: [full, lora-r4]      # default: all
          title: Low ranks have intruders
          options: {k: 5}               # of the figure's function
          span: 1                       # columns it takes; two panels in one figure want two
          legend: false                 # where another panel tells the members apart
        - analysis: forgetting.retention
          results: ../other/results     # where it lies elsewhere
    """
    from workbench.errors import WorkbenchError
    from workbench.figures import Spec
    from workbench.study.runs import redraw

    formats = format or ["png", "pdf"]
    if not {"png"} <= set(formats) <= {"png", "pdf"}:
        raise WorkbenchError(f"Expected --format png, or png and pdf, found {formats}.")
    if source.is_dir():
        print(f"Report: {redraw(source, pictures=out, formats=formats)}")
        return
    if source.suffix not in (".yaml", ".yml"):
        raise WorkbenchError(f"Expected a .yaml file or the folder of a run, found {source}.")
    for path in Spec.load(source).save(out or source.with_suffix("")):
        print(path)


app.command()(exporting.card)
app.command()(exporting.export)
