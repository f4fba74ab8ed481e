"""The two pictures of README.md: the first screen of the demo's report, and a page of this site.

python docs/pictures.py                       # after `make demo` and `make docs`; `make pictures`
python docs/pictures.py REPORT.html SITE      # of a report and a site that lie elsewhere

Both are screenshots of 1280 x 800 CSS pixels by the Chromium in which the tests read the report,
with at most 64 colours, so that the repository stays light.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.reports.browser import Tab, tab
from workbench.errors import WorkbenchError
from workbench.files.writing import OWN, writing

ROOT = Path(__file__).parents[1]
REPORT, SITE = ROOT / "out" / "demo" / "report.html", ROOT / "site"
METHOD = "methods/spectral/intruders.html"
WIDTH, HEIGHT = 1280, 800  # CSS pixels
COLOURS = 64
MOST = 90_000  # bytes of a picture
# The page at its figures, below the bar at the top of the screen.
FIGURES = 'document.getElementById("figures").scrollIntoView(); scrollBy(0, -60)'
STILL, TRIES = 0.5, 20  # seconds between two screenshots that must be equal, and how many are taken


def main(report: Path = REPORT, site: Path = SITE) -> None:
    """Write figures/report.png and figures/method-page.png."""
    page = site / METHOD
    for file, command in ((report, "make demo"), (page, "make docs")):
        if not file.is_file():
            raise WorkbenchError(f"Expected {file}, found nothing there; run `{command}` first.")
    # Chromium's own processes may write to its profile for a moment after it was ended.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tab(Path(folder) / "profile") as opened,
    ):
        opened.call("Emulation.setScrollbarsHidden", hidden=True)
        screenshot(opened, report, ROOT / "figures" / "report.png")
        screenshot(opened, page, ROOT / "figures" / "method-page.png", before=FIGURES)


def screenshot(opened: Tab, page: Path, target: Path, before: str = "") -> None:
    """One screen of a page as PNG. before: JavaScript that runs first. Raises WorkbenchError if the
    picture has more than 90 kB, and if the page does not come to rest."""
    opened.open(page.resolve().as_uri(), WIDTH, HEIGHT)
    if before:
        opened.ask(before)
    image = Image.open(io.BytesIO(settled(opened))).convert("RGB")
    # The median cut would turn the few coloured pixels of a page of text grey.
    image = image.quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=8, dither=Image.Dither.NONE
    )
    smallest = io.BytesIO()
    image.save(smallest, format="PNG", optimize=True)
    if (size := smallest.tell()) > MOST:
        raise WorkbenchError(
            f"Expected a picture of at most {MOST} bytes, found {size} for {page}; "
            f"use fewer than {COLOURS} colours."
        )
    with writing(target, OWN) as fresh:
        fresh.write_bytes(smallest.getvalue())
    print(f"{target}: {size} bytes")


def settled(opened: Tab) -> bytes:
    """What the screen shows once it stays the same, as PNG."""
    seen = opened.image()
    for _ in range(TRIES):
        time.sleep(STILL)
        earlier, seen = seen, opened.image()
        if seen == earlier:
            return seen
    raise WorkbenchError(f"Expected a page that comes to rest, found {TRIES} different screens.")


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except (WorkbenchError, pytest.skip.Exception) as error:
        sys.exit(str(error))
