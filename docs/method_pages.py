"""A page for each method: its record, its docstrings, its verb, and its figures drawn from results
that are kept under figures/."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docstrings import linked, readable
from typer.testing import CliRunner

from workbench.analysis.record import Analysis
from workbench.cli import GROUPS, app
from workbench.cli.signatures import Signature, signatures
from workbench.cli.verbs import FAMILIES, verb_of
from workbench.figures import style
from workbench.figures.catalogue import CATALOGUE, HEADINGS, drawings, everyone
from workbench.figures.drawing import Drawing
from workbench.figures.saving import metadata, png
from workbench.results.result import Result
from workbench.results.run_folder import load
from workbench.study.catalogue import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "workbench"
RUNS = sorted(
    (results.parent for results in (ROOT / "figures").glob("*/results")),
    # The shipped family first: what is on a page is then what the demo shows.
    key=lambda run: (run.name != "family", "smollm2" in run.name, run.name),
)
GROUP = {family: group for group, family in FAMILIES.items()}
Pages = dict[str, str | bytes]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def documentation(sign: Signature) -> str:
    """The docstring of a method's file."""
    path = PACKAGE / Path(*sign.module.split(".")).with_suffix(".py")
    return ast.get_docstring(parsed(path)) or ""


@dataclass(frozen=True)
class Shown:
    """One figure of a method's page. run, name: whose Result it was drawn from."""

    drawing: Drawing
    run: str
    name: str
    result: Result
    image: bytes

    @property
    def asset(self) -> str:
        return f"assets/{self.drawing.analysis}.{self.drawing.name}.png"

    @property
    def width(self) -> int:
        """In pixels of CSS, as in a report: its first chunk holds the PNG's own."""
        return round(int.from_bytes(self.image[16:20], "big") / style.DPI * style.PIXELS)


def methods() -> Pages:
    """A page a method, their figures, and the page that lists them."""
    every = {one.key: one for one in METHODS}
    known = {
        f"{sign.family}.{sign.module.rpartition('.')[2]}": sign
        for family in FAMILIES.values()
        for sign in signatures(family)
    }
    shown, examples = drawn(every)
    made: Pages = {"methods/index.md": overview(known)}
    for key, one in every.items():
        figures = shown.get(key, [])
        text = [
            *_figures(figures),
            *_not_drawn(key, [each.drawing for all in shown.values() for each in all]),
            *(_beside(known[other], each.drawing)
              for other, all in shown.items() for each in all
              if each.drawing.companion == key and not figures),
        ]  # fmt: skip
        made[home(known[key])] = method(
            one, known[key], text, [each.drawing for each in figures], examples.get(key)
        )
        made |= {figure.asset: figure.image for figure in figures}
    return made


def home(sign: Signature) -> str:
    """The page of a method, by the name it is called by."""
    return f"methods/{sign.family}/{sign.name}.md"


def call(sign: Signature) -> str:
    return f"wb.{sign.family}.{sign.name}"


def overview(known: Mapping[str, Signature]) -> str:
    """Every method: its question, its call and its verb."""
    parts = [
        "# Methods",
        "Each method takes a pair of checkpoints, a base and a model fine-tuned from it, and "
        "returns a `Result`: one tidy table that records what it was computed from, and that "
        "saves, loads and plots itself. In Python a method is a function, on the command line a "
        "verb with the same arguments: `wb.patching.cross_model(...)` is "
        "`workbench patch cross-model`. `wb.over(family, method)` joins the tables of several "
        "fine-tuned models.",
        "Every headline is shown with a null or a control. The notes of a result state which of "
        "its numbers mean nothing: one item has no interval, and a share of nothing is NaN.",
    ]
    for family, group in GROUP.items():
        rows = [
            f"| [{one.question}](../{home(one)}) | `{call(one)}`<br>"
            f"`workbench {group} {verb_of(one)}` | {linked(one.record.get('paper', ''))} |"
            for one in known.values()
            if one.family == family
        ]
        head = "| question | Python and command line | based on |\n|---|---|---|"
        parts.append("\n".join([f"## {group}\n\n{GROUPS[group]}\n", head, *rows]))
    return "\n\n".join(parts) + "\n"


def method(
    one: Analysis,
    sign: Signature,
    figures: Sequence[str],
    shown: Sequence[Drawing],
    example: Result | None,
) -> str:
    """The page of one method, which is called as in a report or as its first figure is."""
    doc = documentation(sign)
    title, _, rest = doc.partition("\n\n")
    heading = HEADINGS.get(one.key) or next(d.title for d in shown)
    parts = [
        f"# {heading}",
        f"**{one.question}**",
        _facts(one, sign),
        f"## What it computes, and when it misleads\n\n{readable(rest or title)}",
        *(["## Figures", *figures] if figures else []),
        f"## Call\n\n::: workbench.{sign.module}.{sign.name}\n"
        f"    options:\n      heading: {call(sign)}\n      toc_label: {call(sign)}\n",
        _command(sign),
        *([_columns(example)] if example else []),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(one: Analysis, sign: Signature) -> str:
    if not one.runs:
        cost = "only the weights are read; no model runs"
    elif one.passes is None:
        cost = "the models run; the time depends on the arguments"
    else:
        times = f"{one.passes:g} forward pass{'es' if one.passes != 1 else ''}"
        cost = f"the models run, about {times} over the prompts and texts"
    facts = {
        "From Python": f"`{call(sign)}`",
        "On the command line": f"`workbench {GROUP[sign.family]} {verb_of(sign)}`",
        "Based on": linked(one.paper),
        "What runs": cost,
        "Part of `workbench compare`": "yes" if one.takes is not None else "no",
    }
    return "\n".join(f"- {name}: {said}" for name, said in facts.items())


def _figures(figures: Sequence[Shown]) -> Iterator[str]:
    for shown in figures:
        yield (
            f"{_captioned(shown.drawing, shown)}\n\n"
            f"<small>Drawn from `figures/{shown.run}/results/{shown.name}`.</small>"
        )


def _not_drawn(key: str, everywhere: Sequence[Drawing]) -> Iterator[str]:
    """What could be drawn of the method, and of no kept Result is."""
    for drawing in CATALOGUE:
        if drawing.analysis == key and drawing not in everywhere:
            yield (
                f"{_captioned(drawing)}\n\n<small>No result that comes with the project shows "
                "this figure; `result.plot()` and the report draw it from your results.</small>"
            )


def _captioned(drawing: Drawing, shown: Shown | None = None) -> str:
    image = f"![{drawing.title}](../../{shown.asset}){{ width={shown.width} }}" if shown else ""
    return (
        f"### {drawing.title}\n\n{image}\n\n{readable(drawing.caption)}\n\n"
        f"**When it misleads.** {readable(drawing.misleads)}"
    )


def _beside(other: Signature, drawing: Drawing) -> str:
    """A method that is drawn on another's page."""
    page = f"../{other.family}/{other.name}.md"
    return (
        f"Its numbers are drawn together with those of [`{call(other)}`]({page}): {drawing.title}."
    )


def _command(sign: Signature) -> str:
    """The example of its verb, and all of its options."""
    words = [GROUP[sign.family], verb_of(sign)]
    told = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "90", "TERM": "dumb"}).output
    found = re.search(r"Example: (.*?)\n\n", told, re.S)
    example = " ".join(found[1].split()) if found else f"workbench {' '.join(words)}"
    options = told.partition("\nArguments:")[2] or told.partition("\nOptions:")[2]
    indented = "\n".join(f"    {line}" for line in options.strip("\n").split("\n"))
    return (
        f"## On the command line\n\n```\n{example}\n```\n\n"
        f'??? note "Arguments and options"\n\n    ```text\n{indented}\n    ```\n'
    )


def _columns(result: Result) -> str:
    """What the table of a kept Result looks like."""
    table = result.table
    columns = [name for name in table if table[name].notna().any()]
    metrics = list(dict.fromkeys(table["metric"]))
    named = ", ".join(f"`{name}`" for name in metrics[:16])
    more = f" and {len(metrics) - 16} more" if len(metrics) > 16 else ""
    rows = table.drop_duplicates("metric")[columns].head(4)
    cells = [[_cell(value) for value in row] for row in rows.itertuples(index=False)]
    lines = [columns, ["---"] * len(columns), *cells]
    return (
        "## What the table looks like\n\n"
        f"One of the stored results has {len(table):,} rows, with the metrics {named}{more}. These "
        "are a few of its rows:\n\n"
        + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    )


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "" if text in ("nan", "<NA>", "None") else text
    text = text if len(text) <= 40 else f"{text[:39]}…"
    return readable(text).replace("|", r"\|").replace("\n", " ")


def drawn(every: Mapping[str, Analysis]) -> tuple[dict[str, list[Shown]], dict[str, Result]]:
    """By method, each of its figures drawn once, from the first kept Result that shows it; and a
    Result of it. Which method a Result is of, its name says first: `groups` gives Results of
    `cross_model`."""
    shown: dict[str, list[Shown]] = defaultdict(list)
    examples: dict[str, Result] = {}
    seen = set()
    for run in RUNS:
        results = load(run)
        whole = list(results.values())
        with style.family(everyone(whole)):
            for name, result in results.items():
                key = next((k for k in every if f"{name}.".startswith(f"{k}.")), result.analysis)
                examples.setdefault(key, result)
                for drawing, group in drawings(result, whole):
                    one = (drawing.analysis, drawing.name)
                    if one not in seen and key in every:
                        seen.add(one)
                        image = png(drawing.draw(*group), metadata(drawing.title, group))
                        shown[key].append(Shown(drawing, run.name, name, result, image))
    return shown, examples
