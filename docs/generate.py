"""The pages of the site that are generated and not written; mkdocs runs this as a hook.

A page for each method from its record, its docstrings, its figures' captions and its verb, with the
figures drawn from the results that are stored under figures/; the tables of papers and of findings;
the public names by folder; the notebooks and the benchmarks as Markdown; the figures that written
pages show. Nothing of it is stored.
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from docstrings import ARXIV, linked, readable
from measurements import PARTS
from method_pages import (
    GROUP,
    PACKAGE,
    ROOT,
    RUNS,
    Pages,
    call,
    documentation,
    home,
    methods,
    parsed,
)
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from workbench.cli.signatures import signatures
from workbench.cli.verbs import verb_of
from workbench.figures import Spec, style
from workbench.figures.catalogue import drawings, everyone
from workbench.figures.saving import metadata, png
from workbench.findings import by_base, page, summary
from workbench.findings.equivalence import KEY
from workbench.results.run_folder import load

# Public besides wb itself and the methods.
FOLDERS = ("tasks", "models", "lab", "results", "scoreboard", "integrations")
COPIED = {"report.png": "figures/report.png"}  # `make pictures` writes it
HOW_TO = (
    "own-model", "own-prompts", "changed-heads", "steer", "own-circuit", "sparse-dictionary",
    "same-subspace",
    "figure-for-a-paper", "share-results", "seeds", "phantoms", "difference-lens",
    "repair", "watch", "hand-over", "cluster", "add-a-method", "enter-a-method",
    "add-an-architecture",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated to what is written, and state the navigation of both."""
    made = (
        methods()
        | papers()
        | measurements()
        | findings()
        | reference()
        | notebooks()
        | benchmarks()
        | figures()
    )
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    glossary = (ROOT / "workbench" / "reports" / "glossary.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "glossary.md", content=glossary))
    for name, path in COPIED.items():
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(ROOT / path)))
    config.nav = navigation(made)
    return files


def navigation(made: Pages) -> list[Any]:
    """The table of contents: what is written in its order, then what is made, by folders."""

    def inside(folder: str) -> list[str]:
        return [path for path in made if path.startswith(f"{folder}/") and path.endswith(".md")]

    families = [{group: inside(f"methods/{family}")} for family, group in GROUP.items()]
    return [
        {"Home": "index.md"},
        {"Quickstart": "quickstart.md"},
        {"Glossary": "glossary.md"},
        {"How to": [f"how-to/{name}.md" for name in HOW_TO]},
        {"Methods": ["methods/index.md", *families]},
        {"Tables": [*inside("tables"), "architectures.md", "adapters.md"]},
        {"Background": ["reading-and-running.md", "beside-other-tools.md"]},
        {"API reference": inside("reference")},
        {"Notebooks": ["notebooks/index.md", *inside("notebooks")]},
        {"Benchmarks": ["speed.md", *inside("benchmarks")]},
    ]


def papers() -> Pages:
    """Which call is from which paper: by the records, and by what the docstrings cite."""
    calls: dict[str, list[str]] = defaultdict(list)
    for family, group in GROUP.items():
        for sign in signatures(family):
            link = f"[`{call(sign)}`](../{home(sign)}), `workbench {group} {verb_of(sign)}`"
            doc = f"{sign.record.get('paper', '')} {documentation(sign)}"
            for number in dict.fromkeys(ARXIV.findall(doc)):
                calls[number].append(link)
    for folder in FOLDERS:
        for name, module in _public(folder).items():
            link = f"[`wb.{folder}.{name}`](../reference/{folder}.md#{module}.{name})"
            for number in dict.fromkeys(ARXIV.findall(_docstring(module, name))):
                calls[number].append(link)
    names = _cited()
    rows = [
        f"| {linked(f'arXiv {number}')} | {names.get(number, '')} | {'<br>'.join(calls[number])} |"
        for number in sorted(calls)
    ]
    about = (
        "# Papers and the calls that follow them\n\nEvery paper that a method names as its source, "
        "or takes a definition, a control or a caution from, with the call from Python and the "
        "verb of the command line. Please cite the paper of each method you use.\n\n"
        "| paper | authors | calls |\n|---|---|---|\n"
    )
    return {"tables/papers.md": about + "\n".join(rows) + "\n"}


def measurements() -> Pages:
    """What papers measure, and the call of each."""
    known = {
        sign.module: f"[`{call(sign)}`](../{home(sign)}), `workbench {group} {verb_of(sign)}`"
        for family, group in GROUP.items()
        for sign in signatures(family)
    }

    def told(name: str) -> str:
        if name in known:
            return known[name]
        folder, _, own = name.partition(".")
        return f"[`wb.{name}`](../reference/{folder}.md#{_public(folder)[own]}.{own})"

    text = [
        "# Measurements of the literature",
        "What papers on fine-tuning measure, with the call from Python and the verb of the "
        "command line that measure it here. The page of each method has its definition, its null "
        "and its sources; the [table of papers](papers.md) lists them by number.",
    ]
    for part, rows in PARTS.items():
        text += [f"## {part}", "| source | what is measured | calls | how |\n|---|---|---|---|"]
        text[-1] += "".join(
            f"\n| {one.source} | {one.quantity} | {'<br>'.join(map(told, one.calls)) or 'none'} "
            f"| {one.how} |"
            for one in rows
        )
    return {"tables/measurements.md": "\n\n".join(text) + "\n"}


def _docstring(module: str, name: str) -> str:
    """Of a public function or class, in the file that defines it; "" for what is neither."""
    path = (ROOT / Path(*module.split("."))).with_suffix(".py")
    body = parsed(path).body if path.is_file() else []
    own = [one for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef)]
    return next((ast.get_docstring(one) or "" for one in own if one.name == name), "")


def _cited() -> dict[str, str]:
    """Number of arXiv -> "Hong et al. 2024", as some docstring has it."""
    name = r"[A-Z][\w'-]+"
    authors = rf"({name}(?:(?:, | & ){name})*(?: et al\.)?)"
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for one in re.finditer(rf'{authors},? (?:\((\d{{4}}),|(\d{{4}})(?:,? "[^"]*")?,?) \(?arXiv '
                               rf'({ARXIV.pattern})', text):  # fmt: skip
            found.setdefault(one[4], f"{one[1]} {one[2] or one[3]}")
        for one in re.finditer(rf'{authors}, "[^"]*", arXiv ({ARXIV.pattern})', text):
            found.setdefault(one[2], one[1])
    return found


def findings() -> Pages:
    """The verdicts on published claims, by `workbench.findings`, and how a person reads them."""
    tables = by_base(RUNS)
    measured, _, criteria = page(tables).partition("\n\n")
    reading = (ROOT / "figures" / "README.md").read_text(encoding="utf-8").partition("\n")[2]
    return {
        "tables/findings.md": "# Which published findings show\n\n"
        "A verdict for each claim, by a rule, from the results that come with the project: "
        "*reproduced* where most readings hold, each by its whole 95% interval, and none "
        "contradicts. It takes two training runs or more of every recipe; of one run a side a "
        "finding *holds in one run* at most. The models are small, so a verdict is about them. "
        "`workbench findings RUN...` makes this table of your own runs.\n\n"
        "[How a person reads them](reading.md) is on a separate page.\n\n"
        f"{linked(summary(tables))}\n\n## What was measured\n\n{linked(measured)}\n\n"
        f"## What is measured, and when a claim holds\n\n{linked(criteria)}\n",
        "tables/reading.md": "# How a person reads the findings\n\n!!! note\n    This is "
        f"`figures/README.md`, which is stored next to the results it describes.\n{reading}",
    }


def reference() -> Pages:
    """The public names of each folder; the functions of the methods have pages of their own."""
    made: Pages = {}
    init = parsed(PACKAGE / "__init__.py")
    about = (
        "These are the names of `import workbench as wb`, except for "
        "[the methods](../methods/index.md)."
    )
    made["reference/wb.md"] = _names("wb", about, _literal(init, "_HOME"))
    for folder in FOLDERS:
        tree, public = parsed(PACKAGE / folder / "__init__.py"), _public(folder)
        title = folder if folder == "results" else f"wb.{folder}"
        about = readable((ast.get_docstring(tree) or "").replace("\n", " "))
        made[f"reference/{folder}.md"] = _names(title, about, public)
    return made


def _public(folder: str) -> dict[str, str]:
    """Public name of a folder -> the module it is defined in."""
    tree = parsed(PACKAGE / folder / "__init__.py")
    homes = {
        alias.name: str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: homes[name] for name in _literal(tree, "__all__")}


def _names(title: str, about: str, homes: Mapping[str, str]) -> str:
    parts = [f"# {title}", about]
    for name, module in homes.items():
        module_itself = (ROOT / module.replace(".", "/") / f"{name}.py").is_file()
        shown = f"{title}.{name}" if title.startswith("wb") else name
        parts.append(
            f"::: {module}.{name}\n    options:\n      heading: {shown}\n      toc_label: {name}\n"
            f"      heading_level: 2\n      show_submodules: {str(module_itself).lower()}\n"
        )
    return "\n\n".join(parts) + "\n"


def notebooks() -> Pages:
    """As Markdown, and not run: they are stored without outputs, and all of them together would
    take longer than the rest of the site."""
    made: Pages = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, _ = MarkdownExporter().from_notebook_node(nbformat.read(path, as_version=4))
        # Formulas stay as LaTeX: what sets them would be a script of a megabyte.
        text = re.sub(r"\$\$(.+?)\$\$", r"```latex\n\1\n```", text, flags=re.S)
        text = re.sub(r"\$([^$\n]+)\$", r"`\1`", text)
        title, _, rest = text.strip().partition("\n")
        note = (
            f"\n\n!!! note\n    This is `notebooks/{path.name}`, shown without its outputs. It "
            "runs as it is on the shipped family, in about a minute: `make notebooks` opens it in "
            "JupyterLab.\n"
        )
        made[f"notebooks/{path.stem}.md"] = title + note + rest + "\n"
    return made


def benchmarks() -> Pages:
    """As `make bench` and others wrote them."""
    made: Pages = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if not text.startswith("# "):
            text = f"# {text.partition(':')[0]} ({path.stem})\n\n{text}"
        made[f"benchmarks/{path.name}"] = text
    return made


def figures() -> Pages:
    """The first figure of the shipped family's report, and the figure of several panels."""
    results = list(load(RUNS[0]).values())
    (equivalence,) = (result for result in results if result.analysis == KEY)
    with style.family(everyone(results)):
        drawing, group = next(drawings(equivalence, results))
        members = png(drawing.draw(*group), metadata(drawing.title, group))
    with tempfile.TemporaryDirectory() as folder:
        (panels,) = Spec.load(ROOT / "figures" / "panels.yaml").save(Path(folder) / "panels")
        return {"assets/members.png": members, "assets/panels.png": panels.read_bytes()}


def _literal(tree: ast.Module, name: str) -> Any:
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(one, ast.Name) and one.id == name for one in node.targets)
    )
    return ast.literal_eval(value)
