"""The views of one Result in a notebook: the report's explorer, for this Result alone."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from workbench.conveniences import provides
from workbench.errors import WorkbenchError
from workbench.files.writing import writing
from workbench.reports import packing
from workbench.reports.page import PAGE, render
from workbench.results.result import Result

HEIGHT = 620  # CSS pixels of the frame in a notebook


@dataclass(frozen=True)
class Explorer:
    """A page with the interactive views of one Result. A notebook shows it in a frame of its own,
    which loads nothing and reaches nothing of the notebook; `save` writes it as a file."""

    page: str

    def save(self, path: str | Path) -> Path:
        """Write the page as HTML; its path. Raises WorkbenchError where anything else is there."""
        with writing(Path(path), PAGE) as fresh:
            fresh.write_text(self.page, encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" style="width:100%;border:0" '
            f'height="{HEIGHT}" srcdoc="{html.escape(self.page)}"></iframe>'
        )


@provides("Result.explore")
def explore(result: Result) -> Explorer:
    """Interactive views of `result`'s table: heat maps, lines, intervals, prompts, tokens, texts,
    whichever its rows give, with pickers for what is not an axis, and all rows to filter and save.

    It works offline. Raises WorkbenchError where the table has more rows than a page can hold.
    """
    packed = packing.packed(result)
    if packed is None:
        raise WorkbenchError(
            f"Expected a table of at most {packing.WHOLE} rows to explore, found "
            f"{len(result.table)}; take `result.of` some of its models first."
        )
    return Explorer(
        render(
            "explore.html.jinja",
            title=result.analysis,
            name=result.analysis,
            packed=packed,
            rows=len(result.table),
            looks=packing.looks(result.provenance.members),
        )
    )
