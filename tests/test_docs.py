"""The documentation site: it builds without a warning, every method has its page, every link leads
somewhere, nothing comes from another machine, and what the pages tell people to type is right."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

from tests.reports import browser
from workbench.cli import app
from workbench.cli.signatures import signatures
from workbench.cli.verbs import FAMILIES, verb_of
from workbench.figures.catalogue import CATALOGUE
from workbench.study.catalogue import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# `make architectures` writes the other two.
WRITTEN = sorted(set(DOCS.rglob("*.md")) - {DOCS / "architectures.md", DOCS / "adapters.md"})
TYPED = [*WRITTEN, ROOT / "README.md"]  # what people copy from
LONGEST = 120  # lines of a page that somebody wrote
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
         "audio": "src", "embed": "src", "object": "data", "use": "href"}  # fmt: skip
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect",
                "dns-prefetch", "manifest", "shortcut icon"}  # fmt: skip
# A path of the machine that a page was written on: no reader has it.
PRIVATE = re.compile(r"(^|\s)/(tmp|root|home)/")


class Page(HTMLParser):
    """One page of the site: its ids, where it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.alt: list[str] = []  # of every picture
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if "id" in known:
            self.ids[known["id"]] += 1
        if tag == "a" and "href" in known:
            self.links.append(known["href"])
        if tag == "img":
            self.alt.append(known.get("alt", ""))
        if tag == "link" and known.get("rel") in LOADED_LINKS:
            self.loads.append(known["href"])
        self.loads += [known[LOADS[tag]]] if LOADS.get(tag) in known else []
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", known.get("style", ""))
        self.loads += [one.split()[0] for one in known.get("srcset", "").split(",") if one.strip()]


def lost(pages: dict[str, Page], site: Path) -> Iterator[str]:
    """Every link to a page, a file or a heading that is not there."""
    for name, page in pages.items():
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            here = site if parts.path.startswith("/") else (site / name).parent
            path = unquote(parts.path).lstrip("/")
            found = (here / path).resolve() if path else site / name
            found = found / "index.html" if found.is_dir() else found
            target = str(found.relative_to(site)) if found.is_relative_to(site) else "../"
            if not found.is_file():
                yield f"{name}: {address}"
            elif parts.fragment and target in pages:
                fragment = unquote(parts.fragment)
                if fragment not in pages[target].ids:
                    yield f"{name}: {address}"


def foreign(pages: dict[str, Page], site: Path) -> Iterator[str]:
    """Whatever a page or a style sheet loads from another machine."""
    for name, page in pages.items():
        yield from (f"{name}: {one}" for one in page.loads if urlsplit(one).netloc)
    for sheet in site.rglob("*.css"):
        used = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", sheet.read_text("utf-8"))
        yield from (f"{sheet.name}: {one}" for one in used if urlsplit(one).netloc)


@pytest.fixture
def pretended(tmp_path: Path) -> Path:
    """A site of two pages with a fault of each kind."""
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<img src="x.png"><script src="https://cdn.example/a.js"></script>'
        '<div style="background:url(//cdn.example/a.png)"></div>'
        '<link rel="stylesheet" href="a.css"><a href="https://arxiv.org">4</a>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="../outside.html">1</a>')
    (tmp_path / "a.css").write_text("@import 'https://fonts.example/f.css'; a{b:url(c.png)}")
    return tmp_path


def test_a_fault_of_each_kind_is_noticed(pretended: Path):
    pages = read(pretended)
    assert set(lost(pages, pretended)) == {
        "a.html: b.html#gone", "a.html: c.html", "a.html: x.png", "b.html: ../outside.html",
    }  # fmt: skip
    assert set(foreign(pages, pretended)) == {
        "a.html: https://cdn.example/a.js", "a.html: //cdn.example/a.png",
        "a.css: https://fonts.example/f.css",
    }  # fmt: skip


def read(site: Path) -> dict[str, Page]:
    return {
        str(path.relative_to(site)): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def test_the_site_builds_and_holds_together(tmp_path: Path):
    """One test for all of it, so that it is built once: half a minute."""
    site, asked = tmp_path / "site", tmp_path / "asked"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "ASKED": str(asked),
                          "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'unplugged'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    assert not asked.exists(), asked.read_text()

    pages = read(site)
    assert list(lost(pages, site)) == []
    assert list(foreign(pages, site)) == []
    twice = {name: [one for one, n in page.ids.items() if n > 1] for name, page in pages.items()}
    assert {name: ids for name, ids in twice.items() if ids} == {}
    assert all(alt for page in pages.values() for alt in page.alt)

    of_methods(site)
    for path in site.rglob("*.html"):
        found = PRIVATE.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(site)} says {found and found[0]!r}"
    assert not list(site.rglob("*.py*"))
    in_a_browser(site, tmp_path / "profile")


def of_methods(site: Path) -> None:
    """Every record has a page with its question, call, verb, papers, figures and arguments."""
    listed = (site / "methods" / "index.html").read_text(encoding="utf-8")
    cited = (site / "tables" / "papers.html").read_text(encoding="utf-8")
    signs = {
        f"{one.family}.{one.module.rpartition('.')[2]}": one
        for family in FAMILIES.values()
        for one in signatures(family)
    }
    drawn = set()
    for method in METHODS:
        sign = signs[method.key]
        group = next(name for name, family in FAMILIES.items() if family == sign.family)
        page = site / "methods" / sign.family / f"{sign.name}.html"
        text = unescape(page.read_text(encoding="utf-8"))
        assert method.question in text
        assert f"wb.{sign.family}.{sign.name}" in text
        assert f"workbench {group} {verb_of(sign)} " in text
        assert f"{sign.family}/{sign.name}.html" in listed
        for number in re.findall(r"\d{4}\.\d{5}(?:v\d+)?", method.paper):
            assert f'href="https://arxiv.org/abs/{number}"' in text
            assert f'href="https://arxiv.org/abs/{number}"' in cited
        for parameter in sign.parameters:
            assert re.search(rf"\b{parameter.name}\b", text), f"{page.name}: {parameter.name}"
        drawn |= {one.title for one in CATALOGUE if one.title in text}
    # The first page of a report is no method, nor is the scoreboard.
    others = ("compare.", "truth.")
    shown = {one.title for one in CATALOGUE if not one.analysis.startswith(others)}
    assert shown <= drawn


def in_a_browser(site: Path, profile: Path) -> None:
    """Opened as `python -m http.server` serves it, a page asks no other machine for anything, fits
    a phone, and its search finds; where there is a browser."""
    serve = partial(Silent, directory=str(site))
    with (
        contextlib.suppress(pytest.skip.Exception),
        browser.tab(profile) as opened,
        ThreadingHTTPServer(("127.0.0.1", 0), serve) as server,
    ):
        Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        for name in ("methods/spectral/intruders.html", "reference/wb.html", "index.html"):
            opened.open(f"{here}/{name}", width=390)
            assert opened.ask("document.documentElement.scrollWidth - window.innerWidth") <= 0
        found = opened.ask(SEARCH)
        server.shutdown()
        assert "methods/tuco/contribution.html" in found
        assert [url for url in opened.requests if not url.startswith((here, "data:"))] == []
        assert opened.told == []


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


# Type a word, wait for what is found, give its addresses.
SEARCH = """new Promise((done) => {
  const box = document.querySelector("input.md-search__input");
  const ask = () => {
    box.focus();
    box.value = "tuco";
    box.dispatchEvent(new Event("keyup", {bubbles: true}));
    const found = [...document.querySelectorAll("a.md-search-result__link")];
    if (found.length) done(found.map((one) => one.href).join(" "));
    else setTimeout(ask, 200);
  };
  ask();
})"""


# ---- What people are told to type


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages; "" where none is named."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [block for language, block in fenced if language in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command of ours in a block of a page, also behind a launcher's `--`.
    The GPU that some ask for need not be here."""
    for path in TYPED:
        for block in blocks(path, "", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                before, found, words = line.partition("workbench ")
                if found and (not before or before.rstrip().endswith("--")):
                    typed = ["cpu" if word == "cuda" else word for word in shlex.split(words)]
                    yield str(path.relative_to(ROOT)), typed


COMMANDS = list(commands())


def parsed(words: list[str]) -> Any:
    """The context of a command as its parser makes it; nothing is run."""
    command = typer.main.get_command(app)
    context = command.make_context("workbench", list(words))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, left = command.resolve_command(context, rest)  # type: ignore[attr-defined]
        context = command.make_context(name, left, parent=context)
    return context


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page} {' '.join(words)[:40]}" for page, words in COMMANDS]
)
def test_every_command_is_one(page: str, words: list[str]):
    if words[-1] == "--help":
        assert typer.main.get_command(app).get_command(None, words[0]) is not None  # type: ignore[attr-defined]
    else:
        parsed(words)


def test_the_commands_are_seen_and_a_wrong_one_is_noticed():
    assert len(COMMANDS) > 15
    assert {page for page, _ in COMMANDS} >= {"README.md", "docs/how-to/cluster.md"}
    with pytest.raises(Exception, match="No such option"):
        parsed(["check", "BASE", "TUNED", "--fast"])
    with pytest.raises(Exception, match="No such command"):
        parsed(["compares", "BASE"])


@pytest.mark.parametrize(
    "path", [path for path in TYPED if blocks(path, "python")], ids=lambda path: path.stem
)
def test_the_python_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a clone: each block of a page in turn. What is a file of its own is only read."""
    for name in ("data", "figures"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    for number, block in enumerate(blocks(path, "python")):
        file = tmp_path / f"block{number}.py"  # nnsight reads the source of who calls backward
        file.write_text(block, encoding="utf-8")
        code = compile(block, str(file), "exec")
        if "@analysis" not in block:
            exec(code, known)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_a_page_is_short_and_says_what_is_there(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    assert text.startswith("# ")
    named = set(re.findall(r"`((?:workbench|tests|data|figures|docs)/[\w./-]*\w)`", text))
    example = "spectral/mean_change"
    assert [one for one in named if not (ROOT / one).exists() and example not in one
            and "test_mean_change" not in one] == []  # fmt: skip
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.M)) <= targets


def test_the_glossary_has_every_word():
    words = (
        "Member", "Base", "Family", "Pair", "Null", "Phantom", "Margin", "Intruder dimension",
        "TuCo", "Graft", "Foil", "Residual stream", "Site", "KRS", "CMAP", "Retention", "McNemar",
        "Chance-adjusted",
    )  # fmt: skip
    text = (ROOT / "workbench/reports/glossary.md").read_text(encoding="utf-8")
    assert [word for word in words if f"\n**{word}" not in text] == []


def test_every_measurement_of_the_literature_names_a_call_or_says_why_not():
    import workbench as wb

    known = {method.key for method in METHODS}
    for rows in runpy.run_path(str(DOCS / "measurements.py"))["PARTS"].values():
        for row in rows:
            assert row.calls or row.how, row.source
            for name in row.calls:
                folder, _, own = name.partition(".")
                assert name in known or own in getattr(wb, folder).__all__, name
            options = set(re.findall(r"`(\w+)=", row.how))
            taken = {
                parameter
                for method in METHODS
                if method.key in row.calls
                for parameter in inspect.signature(method.function).parameters
            }
            assert options <= taken, row.source


def test_readme_and_contributing_lead_here():
    assert "(docs/index.md)" in (ROOT / "README.md").read_text()
    assert "make docs" in (ROOT / "CONTRIBUTING.md").read_text()
