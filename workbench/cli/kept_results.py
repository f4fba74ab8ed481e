"""What is made of kept results, without a model: the report, the findings, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import Json, page_out, report_out
from workbench.cli.printing import show


def report(
    results: Annotated[list[Path], typer.Argument(help="Folders of saved results.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.", callback=report_out)] = Path(
        "report.html"
    ),
) -> None:
    """Write one self-contained HTML page from saved results.

    Example: workbench report out/demo/results/* --out report.html
    """
    import workbench as wb

    print(f"Report: {wb.report(results, out)}")


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


def findings(
    runs: Annotated[
        list[Path], typer.Argument(help="The --out folders of runs; their base models may differ.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the table to this Markdown file.", callback=page_out)
    ] = None,
    json: Json = False,
) -> None:
    """Which published findings do these results show? Each claim gets a verdict by a fixed rule.

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


def figures(
    source: Annotated[
        Path, typer.Argument(help="A .yaml file that lists panels, or the --out folder of a run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="For a .yaml file: the picture's path without .png; for a run: the folder "
            "of figures."
        ),
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="png, or both png and pdf; may repeat. Default: both.")
    ] = None,
) -> None:
    """Draw figures from saved results, without a model: a paper's panels, or a run's report again.

    Example: workbench figures panels.yaml --out out/panels

    The .yaml file lists the panels. They get letters, fill the rows from the left, and show each
    model in the same colour:

    \b
      results: out/mine/results         # folder of saved results, relative to this file
      style: paper                      # PNG at 300 dpi and PDF; notebook: PNG for a screen
      size: wide                        # column (3.4 in), wide (7 in), or [width, height]
      columns: 2
      panels:
        - analysis: spectral.intruders  # a folder of results
          figure: count                 # one of its figures; default: the first
          members: [full, lora-r4]      # default: all
          title: Low ranks have intruders
          options: {k: 5}               # arguments of the figure's function
          span: 1                       # columns; a figure that has two panels needs 2
          legend: false                 # if another panel already has the legend
        - analysis: forgetting.retention
          results: ../other/results     # if these results are in another folder
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
        raise WorkbenchError(f"Expected a .yaml file or the --out folder of a run, found {source}.")
    for path in Spec.load(source).save(out or source.with_suffix("")):
        print(path)
