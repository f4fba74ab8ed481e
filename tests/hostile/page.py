"""A Result whose every name is hostile, and what must hold of its report and in a notebook."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd

import workbench as wb
from tests.figures.synthetic import result
from workbench.cli.options import show
from workbench.reports import packing
from workbench.results.result import Result

TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "main",
    "section", "a", "ul", "li", "code", "div", "table", "caption", "thead", "tbody", "tr", "th",
    "td", "span", "figure", "img", "figcaption", "strong", "details", "summary", "pre", "dl", "dt",
    "dd", "nav", "ol", "label", "input", "button", "b", "script",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "aria-labelledby", "aria-label", "id",
    "href", "class", "role", "tabindex", "scope", "src", "alt", "width", "height", "style",
    "open", "hidden", "type", "decoding", "aria-hidden", "aria-pressed", "data-name", "data-member",
    "data-columns", "data-toggle", "data-all", "data-packed",
}  # fmt: skip
ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Page(HTMLParser):
    """Raises AssertionError at a tag or attribute that we do not make."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, f"<{tag}> in the page"
        for name, value in attrs:
            assert name in ATTRIBUTES, f"attribute {name} of <{tag}>"
            if name in ("href", "src"):
                assert re.match(r"#|data:image/webp;base64,", value or ""), f"{name} = {value}"
        if tag == "script":  # what is run was taken out before: the rest is data
            assert dict(attrs).get("type") in ("application/json", "text/plain"), "a script"


def hostile_result(first: str, second: str, third: str, fourth: str) -> Result:
    """One member and task, and every free text of a Result, by these names."""
    members = {first: {"kind": "lora", "rank": 2, "fingerprint": second, "reference": third}}
    rows = [
        {"member": first, "task": second, "metric": metric, "value": 0.1, "low": 0.0, "high": 0.2,
         "n": 3, "baseline": 0.0}
        for metric in ("score", "score_change")
    ]  # fmt: skip
    rows += [rows[1] | {"task": "pretraining", "metric": "loss_change"}]
    return result("forgetting.retention", rows, members, prompt=third, other={second: fourth})


def _without_ours(page: str) -> str:
    """The page without the scripts that it is meant to run, each of which is there once."""
    for script in packing.scripts():
        assert page.count(f"<script>{script}</script>") == 1
        page = page.replace(f"<script>{script}</script>", "")
    return page


def require_escaped(folder: Path) -> None:
    """Write the report of the four texts in `folder` and check it."""
    texts = json.loads((folder / "texts.json").read_text())
    made = hostile_result(*texts)
    line = {"item": texts[0], "status": texts[1], "found": texts[2], "remedy": texts[3]}
    preflight = pd.DataFrame([line])
    path = wb.report([made], folder / "page.html", title=texts[0], preflight=preflight, notes=texts)
    for html in (_without_ours(path.read_text(encoding="utf-8")), made._repr_html_()):
        found = ODD.search(html)
        assert not found, f"{found} in the page"
        Page().feed(html)
    show(preflight, json=False)
