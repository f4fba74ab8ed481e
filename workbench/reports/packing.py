"""What a page carries beside its text: tables as compressed columns, pictures, Vega, and the policy
under which a browser runs nothing else.

The page opens from a file, so it can load nothing: whatever it shows lies in it. Vega compiles no
text to code there (its interpreter walks the expressions), so that the policy needs no
'unsafe-eval': scripts run by the digest of their text alone.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError, visible
from workbench.figures import style
from workbench.figures.views import LABELS, View, begins, views
from workbench.files.writing import writing
from workbench.results import cache
from workbench.results.result import Result

ASSETS = Path(__file__).parent / "assets"
OFFERED = "window.vegaEmbed = vegaEmbed;"
WHOLE = 100_000  # rows up to which a table is in the page
DIGITS = 6  # significant, of a number in the page
QUALITY = 36  # of WebP: type stays legible, and a map's colours those of its scale
# Matplotlib's markers by Vega's names, or as paths of unit size where Vega has none.
SHAPES = {
    "o": "circle", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "<": "triangle-left",
    ">": "triangle-right", "s": "square", "X": "cross", "P": "cross",
    "p": "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",
    "h": "M-0.5,-0.87L0.5,-0.87L1,0L0.5,0.87L-0.5,0.87L-1,0Z",
    "*": "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31"
    "L-0.22,-0.31Z",
}  # fmt: skip


# And as a letter beside a name.
SIGNS = {
    "o": "●", "^": "▲", "v": "▼", "D": "◆", "<": "◀", ">": "▶", "s": "■", "X": "✖", "P": "✚",
    "p": "⬟", "h": "⬢", "*": "★",
}  # fmt: skip


def packed(result: Result) -> str | None:
    """`result`'s table and views as base64 of gzipped JSON; None where it has too many rows."""
    if len(result.table) > WHOLE:
        return None
    table = result.table
    if "member" not in table:
        table = table.assign(member=" + ".join(result.members))
    known = [name for name in table["metric"].unique() if name in LABELS]
    content = {
        "labels": {name: LABELS[name] for name in known},
        "columns": {str(name): _column(table[name]) for name in table},
        "views": [_without_defaults(one) for one in views(result)],
        "rows": len(table),
        "begins": begins(result),
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    # The time in gzip's header would make every page another file.
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _without_defaults(view: View) -> dict[str, Any]:
    return {name: value for name, value in asdict(view).items() if value}


def _column(column: pd.Series) -> dict[str, Any] | list[Any]:
    """Numbers as they are, anything else as its distinct values and where each stands."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return [None if pd.isna(v) else _number(float(v)) for v in column]
    codes, distinct = pd.factorize(column)
    return {"of": [visible(str(one)) for one in distinct], "at": codes.tolist()}


def _number(value: float) -> float | int | str:
    if value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")


def looks(members: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Member -> its colour and its shape, as its figures have them."""
    made = style.assign(members)
    return {
        name: {
            "colour": made[name].colour,
            "shape": SHAPES.get(made[name].marker, "circle"),
            "sign": SIGNS.get(made[name].marker, "●"),
        }
        for name in members
    }


def picture(png: bytes) -> tuple[str, int, int]:
    """(a data address, width, height in CSS pixels) of a figure, at one dot a CSS pixel; the file
    that it comes from is sharper, and ten times the size."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    width, height = (round(side / style.DPI * style.PIXELS) for side in image.size)
    made = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(made, "WEBP", quality=QUALITY)
    return _address("image/webp", made.getvalue()), width, height


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def styles() -> str:
    """The page's style sheet."""
    return (ASSETS / "report.css").read_text(encoding="utf-8")


@functools.cache
def scripts() -> tuple[str, ...]:
    """The scripts of a page, in order: Vega, tables and views, what the reader handles."""
    own = (ASSETS / f"{name}.js" for name in ("table", "charts", "texts", "explore", "report"))
    return (vega(), *(path.read_text(encoding="utf-8") for path in own))


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, made once a machine.

    vl-convert bundles them in some seconds; the cache keeps what it made, under its version and
    sealed by its digest.
    """
    import vl_convert

    kept = cache.folder("scripts", f"vega-{metadata.version('vl-convert-python')}.js")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        seal, _, script = kept.read_text(encoding="utf-8").partition("\n")
        if seal == _seal(script):
            return script
    script = _inline(vl_convert.javascript_bundle(OFFERED))
    # A cache that cannot be written costs the next page some seconds, no more.
    with contextlib.suppress(OSError, WorkbenchError), writing(kept, cache.CACHED) as fresh:
        fresh.write_text(f"{_seal(script)}\n{script}", encoding="utf-8")
    return script


def _seal(script: str) -> str:
    return f"// {cache.digest([script.encode()])}"


def _inline(script: str) -> str:
    """A script that an HTML page can hold: nothing in it ends it, or begins a comment."""
    script = re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE).replace("<!--", r"<\!--")
    # As a module's its names would be its own; here they are kept from everyone else's.
    return f"(()=>{{{script}\n}})();"


def policy(scripts: Sequence[str]) -> str:
    """The page's Content-Security-Policy: it loads nothing, and runs these scripts alone."""
    digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts)
    run = " ".join(f"'sha256-{one}'" for one in digests)
    return (
        f"default-src 'none'; script-src {run}; img-src data: blob:; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
