"""How files of prompts are read, said once for every such file of a command."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

# Of a command that reads prompts: each with the argument of `tasks.read` it is.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "map": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--map",
                metavar="FIELD=KEY,...",
                help="How the files of prompts name a field: target=response, target=answers.0, "
                "tags.kind=meta.kind; may repeat.",
            ),
        ],
        None,
    ),
    "scorer": (
        Annotated[
            str | None,
            typer.Option(
                "--scorer",
                help="The rule by which an answer is correct: continuation, choices, "
                "generation, loss "
                'or gsm8k, with settings as in "choices by=byte"; default: chosen by '
                "what the file holds.",
            ),
        ],
        None,
    ),
    "template": (
        Annotated[
            str | None,
            typer.Option(
                "--template",
                metavar="base|tuned|plain",
                help="Whose chat template renders the prompts; plain: lines of user and assistant. "
                "Default for messages: that of the base, or of the fine-tuned model if the base "
                "has none.",
            ),
        ],
        None,
    ),
    "letters": (
        Annotated[
            bool,
            typer.Option(
                "--letters",
                help="List the choices in the prompt and score their letters, not their texts.",
            ),
        ],
        False,
    ),
}
_HOW: ContextVar[Mapping[str, Any]] = ContextVar("how", default=MappingProxyType({}))


def reads_prompts(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options of OPTIONS, which hold for whatever it loads by `loaded`."""
    known = inspect.signature(function, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, kind, annotation=annotation, default=default)
        for name, (annotation, default) in OPTIONS.items()
    ]

    @wraps(function)
    def run(**given: Any) -> Any:
        how = {name: given.pop(name) for name in OPTIONS}
        with _reading(**how):
            return function(**given)

    parameters = [*known.parameters.values(), *more]
    run.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


@contextlib.contextmanager
def _reading(*, map: list[str] | None, **how: Any) -> Iterator[None]:
    from workbench.tasks import scorers

    if how["scorer"] is not None:
        how["scorer"] = scorers.scorer(how["scorer"])  # which is refused before any work
    token = _HOW.set({**how, "map": mapped(map)})
    try:
        yield
    finally:
        _HOW.reset(token)


def mapped(typed: list[str] | None) -> dict[str, str] | None:
    """FIELD=KEY, separated by commas or repeated, as a map."""
    from workbench.errors import WorkbenchError

    found: dict[str, str] = {}
    for one in (part for text in typed or () for part in text.split(",")):
        field, equals, key = one.strip().partition("=")
        if not (field and equals and key) or field in found:
            raise WorkbenchError(
                f"Expected --map FIELD=KEY,... with each field once, found {one!r}; an example is "
                "--map prompt=question,target=answers.0."
            )
        found[field] = key
    return found or None


def loaded(path: Path) -> Any:
    """The prompts of a file, read as this command's options say."""
    import workbench as wb

    return wb.tasks.PromptSet.load(path, **_HOW.get())
