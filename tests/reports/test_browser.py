"""The report as a reader has it: in a browser, on a phone and a desk, whatever the names hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from tests.models.conftest import write_base, write_member
from tests.reports.browser import Tab, tab
from workbench.errors import visible

NARROW, WIDE = 360, 1400  # CSS pixels
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(\'x\')"> & \'quoted\' "twice"',
    "🦊 é 漢字 {{ 7 * 7 }} $x_1$",
    "שלום עולם مرحبا \u202egnihtyna",
    "x" * 300,
)
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
UNSHOWN = (
    "Promise.all([...document.images].map(i => i.decode().catch(() => 0)))"
    ".then(() => [...document.images].filter(i => !i.naturalWidth).length)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of real Results whose every name, prompt and note is hostile."""
    folder = tmp_path_factory.mktemp("report")
    base = write_base("llama", folder / "base")
    members = {
        HOSTILE[0]: write_member("llama", "lora", folder / "lora"),
        HOSTILE[1]: write_member("llama", "full", folder / "full"),
    }
    family = wb.load_family(base, members)
    asked = [
        wb.tasks.PromptSet(
            name, tuple(wb.tasks.Prompt(str(i), f"3 4 {t}", " 5") for i, t in enumerate(HOSTILE))
        )
        for name in HOSTILE[2:]
    ]
    results = [
        wb.over(family, wb.spectral.intruders, k=3),
        wb.over(family, wb.forgetting.retention, prompts=asked, texts=["3 4 5 6", "7 8 9 3"]),
        wb.over(family, wb.tuco.contribution, prompts={one.name: one for one in asked[:2]}),
        wb.over(family, wb.behaviour.tokens, prompts=[f"3 4 5 {text}" for text in HOSTILE]),
    ]
    lines = [{"item": text, "status": "warn", "found": text, "remedy": text} for text in HOSTILE]
    return wb.report(
        results,
        folder / "page.html",
        title=f"{HOSTILE[0]} {HOSTILE[-1]}",
        preflight=pd.DataFrame(lines),
        notes=HOSTILE,
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("browser") / "profile") as made:
        yield made


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_the_report_in_a_browser(opened: Tab, page: Path, width: int):
    opened.requests.clear()
    opened.open(page.as_uri(), width)
    text = opened.ask("document.body.innerText")
    assert [one for one in map(visible, HOSTILE) if one not in text] == []
    assert opened.ask("document.images.length") > 4
    assert opened.ask(UNSHOWN) == 0
    assert opened.ask("document.scripts.length") == 0
    assert opened.ask(OVERFLOW) <= 0
    opened.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert opened.ask(OVERFLOW) <= 0
    assert opened.told == []
    asked = {url for url in opened.requests if not url.startswith("data:image/png;base64,")}
    assert asked == {page.as_uri()}


def test_what_must_not_be_there_would_be_seen(opened: Tab, tmp_path: Path):
    """The same questions of a page that has all of it."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<div style='width:3000px'>x</div><img src='missing.png'>"
        "<script>console.log('said'); alert('asked')</script>"
    )
    opened.requests.clear()
    opened.open(bad.as_uri(), NARROW)
    assert opened.ask(OVERFLOW) > 0
    assert opened.ask(UNSHOWN) == 1
    assert opened.ask("document.scripts.length") == 1
    for event in ("Runtime.consoleAPICalled", "Page.javascriptDialogOpening", "Log.entryAdded"):
        assert any(line.startswith(event) for line in opened.told)
    assert any(url.endswith("missing.png") for url in opened.requests)
    opened.told.clear()
