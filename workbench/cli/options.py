"""What the verbs share: their options, and how they end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.printing import print_groups, print_items, print_texts, say, show
from workbench.cli.reading import loaded

Base = Annotated[
    str, typer.Argument(help="The base model: a folder, a .gguf file, or hub id@revision.")
]
Tuned = Annotated[
    str,
    typer.Argument(
        help="The fine-tuned model: as BASE, or an adapter folder (of peft, mlx-lm or torchtune), "
        "or BASE+ADAPTER."
    ),
]


def _free(module: str, mark: str) -> Callable[[Path | None], Path | None]:
    """A callback of an --out that is refused before any work where something else is there; the
    mark is looked up when it is asked for, since its module may take seconds to import."""

    def there(path: Path | None) -> Path | None:
        from workbench.files.writing import require_free

        if path is not None:
            require_free(path, getattr(import_module(module), mark))
        return path

    return there


run_out = _free("workbench.results.run_folder", "RUN")
result_out = _free("workbench.results.result", "SAVED")
member_out = _free("workbench.lab.train", "MEMBER")
phantom_out = _free("workbench.lab.phantom", "PHANTOM")
report_out = _free("workbench.reports.page", "PAGE")
page_out = _free("workbench.findings", "PAGE")
card_out = _free("workbench.export.card", "CARD")
Out = Annotated[
    Path, typer.Option(help="Folder to write results, figures and the report to.", callback=run_out)
]
Save = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to save the result in.", callback=result_out),
]
Json = Annotated[bool, typer.Option("--json", help="Print the table as JSON lines.")]


def device_there(name: str) -> str:
    """A device, refused before any work where it is none of this machine's."""
    if name != "cpu":  # torch takes seconds to import
        from workbench.loaders.devices import entry

        entry(name)
    return name


Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, mps, or auto (all GPUs, then memory, then disk).",
        callback=device_there,
    ),
]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16: the precision in which models run.")]
WHERE = "Where to run: here, local:N, ray:auto, ray:HOST:PORT or ray://HOST:PORT."
On = Annotated[str, typer.Option(help=WHERE)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, then stop.")]
Batch = Annotated[int, typer.Option(help="Rows per forward pass; halved if they do not fit.")]
Large = Annotated[
    bool, typer.Option("--large", help="Run even if the plan takes over an hour or much memory.")
]
SHOW = "show"  # of every verb whose Result keeps single items
FULL = "full"  # of every verb whose own defaults are for larger machines


def full(more: str) -> Any:
    """The option --full; more: what it brings back."""
    return Annotated[bool, typer.Option("--full", help=f"Run at full size: {more}.")]


Seed = Annotated[int, typer.Option(help="Seed for everything that is drawn at random.")]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Run only this analysis, for example tuco.contribution; may repeat."),
]
Phantoms = Annotated[
    int,
    typer.Option(
        help="Models that learned nothing to draw for each fine-tuned model: its norms, ranks and "
        "singular values in random directions. Every analysis is run on them too.",
        min=0,
    ),
]
Steps = Annotated[
    Path | None,
    typer.Option(
        help="A training run, the folder with its checkpoints: curves over its steps are drawn."
    ),
]
Members = Annotated[
    list[str] | None,
    typer.Option(
        "--member", help="A fine-tuned model as NAME=REFERENCE; repeat it for every model."
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="A file of text like the pre-training data; default: texts sampled from the base."
    ),
]


Show = Annotated[
    int, typer.Option(help="How many items, or texts, of each kind are printed; 0 for none.")
]
SHOWN = 3


def finish(result: Any, out: Path | None, json: bool, show: int = 0) -> None:
    from workbench import figures
    from workbench.errors import visible

    if out is not None:
        result.save(out)
    if json:
        print(result.table.to_json(orient="records", lines=True), end="")
    else:
        say(visible(figures.headline(result)))
        for note in result.provenance.notes:
            say(visible(f"note: {note}"), "  ")
        print_groups(result)
        print_items(result, show)
        print_texts(result, show)
        print(f"Saved: {out}" if out is not None else "(--out FOLDER saves the table)")


def run_study(
    study: Any,
    out: Path,
    dry_run: bool,
    json: bool,
    title: str | None = None,
    on: str = "here",
    formats: Sequence[str] = ("png", "pdf"),
    left_out: Mapping[str, Exception] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    from workbench.errors import visible
    from workbench.results.run_folder import failures
    from workbench.study import cluster
    from workbench.study.compare import compare
    from workbench.study.plan import plan

    cluster.place(on)
    for one in study.first_prompts():
        print(f"First prompt, token by token: {visible(one)}", file=sys.stderr)
    if dry_run:
        show(plan(study), json)
        return
    planned = plan(study)
    say(
        f"Plan: {len(planned)} analyses, about {planned['minutes'].sum():.0f} minutes and at most "
        f"{planned['peak_MiB'].max():,} MiB of memory{_drawn(study)}; --dry-run lists them.",
        error=True,
    )
    begun = time.monotonic()
    made = compare(
        study, out, title=title, on=on, formats=formats, left_out=left_out, options=options
    )
    if json:
        import pandas as pd

        show(pd.DataFrame({"report": [str(made)], "results": [str(out / "results")]}), json)
    else:
        minutes, seconds = divmod(round(time.monotonic() - begun), 60)
        print(f"Report: {made} ({minutes} min {seconds} s)")
    failed = failures(out)
    for one in failed:
        print(f"workbench: {one}", file=sys.stderr)
    if failed:
        print(f"workbench: tracebacks are in {out / 'failed'}", file=sys.stderr)
        raise typer.Exit(1)


def _drawn(study: Any) -> str:
    from workbench.study.phantoms import disk

    if not study.phantoms:
        return ""
    return f", and {disk(study) / 2**20:,.0f} MiB in the cache folder for phantoms"


def steps_of(base: str, run: Path | None) -> Any:
    """The checkpoints of a training run as a family, where one was given."""
    import workbench as wb

    return None if run is None else wb.loaders.load_steps(base, run)


def members_of(base: str, members: Mapping[str, str]) -> tuple[Any, dict[str, Exception]]:
    """The family of those members that can be read, and why the others cannot. Raises the first
    reason where there are no others."""
    import workbench as wb

    good, bad = {}, {}
    for name, reference in members.items():
        try:
            good[name] = wb.load_pair(base, reference, name).tuned
        except wb.WorkbenchError as error:
            bad[name] = error
    if bad and not good:
        raise next(iter(bad.values()))
    return wb.load_family(base, good), bad


def asked(path: Path, split: str = "test") -> Any:
    """The prompts of one split of a file, with a word where that leaves some out; all of a file
    that has none of it."""
    whole = loaded(path)
    own = [prompt for prompt in whole if prompt.split == split]
    if not own or len(own) == len(whole):
        return whole
    print(f"{path}: uses {len(own)} of {len(whole)} prompts, those of the split {split}.",
          file=sys.stderr)  # fmt: skip
    return replace(whole, prompts=tuple(own))


def fewer(given: Any, most: int) -> Any:
    """At most so many prompts or texts, evenly spaced, of each set; a word where that leaves some
    out. given: a set, texts, or several of them in a list or by name."""
    from workbench.tasks.prompts import PromptSet

    if isinstance(given, Mapping):
        return {name: fewer(one, most) for name, one in given.items()}
    if isinstance(given, list) and all(isinstance(one, PromptSet) for one in given):
        return [fewer(one, most) for one in given]
    if len(given) <= most:
        return given
    chosen = [i * len(given) // most for i in range(most)]
    if not isinstance(given, PromptSet):
        return [given[i] for i in chosen]
    print(f"{given.name}: uses {most} of {len(given)} prompts, evenly spaced; --full uses all.",
          file=sys.stderr)  # fmt: skip
    return replace(given, prompts=tuple(given.prompts[i] for i in chosen))


def group_of(path: Path) -> Any:
    """One group of prompts: a prompt set, or the lines of a text file."""
    import workbench as wb
    from workbench.tasks.prompts import are_prompts

    if are_prompts(path) and path.suffix != ".txt":
        return asked(path)
    pieces = wb.tasks.read_text(path, characters=1, most=100_000)
    return [piece.strip() for piece in pieces if piece.strip()]


def named(members: list[str] | None, option: str = "member") -> dict[str, str]:
    """NAME=REFERENCE of a repeated option as a mapping."""
    from workbench.errors import WorkbenchError, visible

    named = {}
    for one in members or []:
        name, equals, reference = one.partition("=")
        if not (name and equals and reference) or name in named or name != visible(name):
            raise WorkbenchError(
                f"Expected --{option} NAME=REFERENCE with a new, plain name, found {one!r}."
            )
        named[name] = reference
    return named


def words(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> tuple[float, ...]:
    from workbench.errors import WorkbenchError

    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise WorkbenchError(f"Expected numbers separated by commas, found {text!r}.") from error


def texts(path: Path | None) -> list[str] | None:
    """A text file in pieces, or the first texts of a file of them, a row each."""
    from workbench.errors import WorkbenchError
    from workbench.tasks.formats import read
    from workbench.tasks.measurements import PIECES, read_text
    from workbench.tasks.prompts import are_prompts
    from workbench.tasks.scorers import Loss

    if path is None or not are_prompts(path) or path.suffix == ".txt":
        return None if path is None else read_text(path)
    found = read(path)
    if not isinstance(found.scorer, Loss):
        raise WorkbenchError(
            f'Expected plain texts in {path}, found prompts with answers; give rows of {{"text": '
            "...}, give a .txt file, or pass this file as --prompts."
        )
    return found.texts[:PIECES]
