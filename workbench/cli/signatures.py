"""The public functions as their source tells them: signature, defaults, docstring and record.

Read with `ast`, since importing an analysis takes seconds and --help must not. What a family
exports in its `__init__.py` and declares with `@analysis(...)` is a verb; the words behind a
parameter's name and colon in the docstring are its help.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
# A sentence ends where a capital or a quote follows, or nothing: "e.g. that" goes on.
SENTENCE = re.compile(r"(?<=[.;])\s+(?=[A-Z\"]|$)")


@dataclass(frozen=True)
class Parameter:
    """kind: its annotation as text, aliases of Literal and Callable spelled out. default: as its
    source says, None where it must be given. help: what the docstring says of it."""

    name: str
    kind: str
    default: str | None
    help: str

    @property
    def needed(self) -> bool:
        return self.default is None

    @property
    def choices(self) -> list[str]:
        """The texts among its Literals."""
        found = re.findall(r"Literal\[([^\]]*)\]", self.kind)
        return [text for one in found for text in re.findall(r"['\"]([^'\"]*)['\"]", one)]


@dataclass(frozen=True)
class Signature:
    """One public function. module: "spectral.intruders"."""

    family: str
    module: str
    name: str
    question: str
    summary: str
    parameters: tuple[Parameter, ...]
    record: Mapping[str, Any] = field(default_factory=dict)


@cache
def signatures(family: str) -> tuple[Signature, ...]:
    """The analyses that a family exports, in the order of its ANALYSES."""
    exported = _parsed(PACKAGE / family / "__init__.py")
    homes = {
        alias.name: str(node.module)
        for node in exported.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    order = [ast.unparse(one) for one in _assigned(exported, "ANALYSES").elts]
    return _explained([_signature(family, homes[name], name) for name in order])


def _explained(found: list[Signature]) -> tuple[Signature, ...]:
    """With the words of another function's docstring where one says "As in `other`."."""
    known = {(one.name, p.name): p.help for one in found for p in one.parameters}

    def words(parameter: Parameter) -> str:
        other = re.match(r"As (?:in )?`(\w+)`", parameter.help)
        return known.get((other[1], parameter.name), "") if other else parameter.help

    return tuple(
        replace(one, parameters=tuple(replace(p, help=words(p)) for p in one.parameters))
        for one in found
    )


def _signature(family: str, home: str, name: str) -> Signature:
    tree = _parsed(_file(home))
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    (declared,) = (
        one for one in function.decorator_list
        if isinstance(one, ast.Call) and ast.unparse(one.func) == "analysis"
    )  # fmt: skip
    doc = ast.get_docstring(function) or ""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
    every = [
        *zip(positional, [*defaults, *given.defaults], strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    said = _said(doc, {one.arg for one, _ in every})
    return Signature(
        family,
        home.removeprefix("workbench."),
        name,
        ast.literal_eval(declared.args[0]),
        " ".join(doc.partition("\n\n")[0].split()),
        tuple(
            Parameter(one.arg, _kind(one, tree), _default(default, tree), said.get(one.arg, ""))
            for one, default in every
        ),
        {str(k.arg): ast.literal_eval(k.value) for k in declared.keywords},
    )


def _said(doc: str, names: set[str]) -> dict[str, str]:
    """What a docstring says of each parameter: "name: words", or "name, other: words"; the first
    sentence of it, or its first clause."""
    marks = [
        mark
        for mark in re.finditer(r"(?:^|(?<=[\s(]))(\w+(?:,\s+\w+)*):\s", doc)
        if set(re.split(r",\s+", mark[1])) <= names
    ]
    ends = [*(mark.start() for mark in marks[1:]), len(doc)]
    found: dict[str, str] = {}
    for mark, end in zip(marks, ends, strict=False):
        words = " ".join(doc[mark.end() : end].partition("\n\n")[0].split())
        first = SENTENCE.split(words)[0].rstrip(".;")
        for name in re.split(r",\s+", mark[1]):
            found.setdefault(name, f"{first[:1].upper()}{first[1:]}.")
    return found


def _default(value: ast.expr | None, tree: ast.Module) -> str | None:
    """A default as it is written, names of constants replaced by what they stand for."""
    if value is None:
        return None
    return ast.unparse(_looked_up(value, tree) if isinstance(value, ast.Name) else value)


def _kind(argument: ast.arg, tree: ast.Module) -> str:
    """An annotation as text, in which names that stand for others are spelled out."""
    if argument.annotation is None:
        return "Any"

    class SpellOut(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            stands_for = _looked_up(node, tree)
            plain = isinstance(stands_for, ast.Subscript | ast.BinOp)
            return stands_for if plain else node

    return ast.unparse(SpellOut().visit(ast.parse(ast.unparse(argument.annotation), mode="eval")))


def _looked_up(name: ast.Name, tree: ast.Module) -> ast.expr:
    """What a name of a module was assigned, there or where it was imported from."""
    found = _assigned(tree, name.id)
    if found is not None:
        return found
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("workbench."):
            for alias in node.names:
                if (alias.asname or alias.name) == name.id and _file(str(node.module)).is_file():
                    own = ast.Name(alias.name)
                    there = _looked_up(own, _parsed(_file(str(node.module))))
                    return name if there is own else there
    return name


def _assigned(tree: ast.Module, name: str) -> Any:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if isinstance(node, ast.AnnAssign):
            targets = (node.target,)
        if any(isinstance(one, ast.Name) and one.id == name for one in targets):
            return node.value  # pyright: ignore[reportAttributeAccessIssue]
    return None


def _file(module: str) -> Path:
    path = PACKAGE.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
