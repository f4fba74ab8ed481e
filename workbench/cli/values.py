"""How an argument of a public function is asked for on the command line, by its annotation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cli.options import asked, group_of, named, numbers, words
from workbench.cli.options import texts as texts_of
from workbench.cli.signatures import Parameter

PROMPTS = "Prompts with answers: JSONL, JSON, CSV, parquet, or a folder of datasets"


@dataclass(frozen=True)
class Form:
    """What is typed, and what it becomes. type: of the option. read: what was typed -> the
    argument. help: where the docstring says nothing, or speaks of objects of Python."""

    type: Any
    read: Callable[[Any], Any]
    help: str = ""


def form(parameter: Parameter) -> Form | None:
    """None where the command line has no way to say it."""
    for pattern, make in FORMS:
        if re.match(pattern, parameter.kind):
            return make(parameter)
    return None


def prompts_of(parameter: Parameter) -> Form:
    split = "train" if parameter.name == "lessons" else "test"
    return Form(Path, lambda path: asked(path, split), f"{PROMPTS}.")


def texts_or_prompts(_: Parameter) -> Form:
    return Form(Path, group_of, f"{PROMPTS}, or a .txt file with one text a line.")


def texts(_: Parameter) -> Form:
    return Form(
        Path,
        texts_of,
        "A file of text like the pre-training data; default: texts sampled from the base.",
    )


def several_prompts(_: Parameter) -> Form:
    return Form(
        list[Path], lambda paths: [asked(path) for path in paths], f"{PROMPTS}; may repeat."
    )


def named_prompts(parameter: Parameter) -> Form:
    def read(given: list[str]) -> dict[str, Any]:
        return {name: asked(Path(path)) for name, path in named(given, parameter.name).items()}

    return Form(list[str], read, f"NAME=FILE. {PROMPTS}; may repeat.")


def groups_of_prompts(_: Parameter) -> Form:
    """Every file a group that is called like it."""

    def read(paths: list[Path]) -> dict[str, Any]:
        from workbench.errors import WorkbenchError

        found = {path.stem: path for path in paths}
        if len(found) < len(paths):
            raise WorkbenchError(
                "Expected files of different names for --prompts, since the name is the group's; "
                "rename one of them."
            )
        return {name: group_of(path) for name, path in found.items()}

    return Form(
        list[Path],
        read,
        "One group of prompts: a file of prompts, or a .txt file with one text a "
        "line; repeat for more groups.",
    )


def named_references(parameter: Parameter) -> Form:
    def read(given: list[str]) -> dict[str, str]:
        return named(given, parameter.name)

    return Form(list[str], read, "NAME=FOLDER; may repeat.")


def named_patterns(parameter: Parameter) -> Form:
    def read(given: list[str]) -> dict[str, str]:
        return named(given, parameter.name)

    return Form(list[str], read, "NAME=REGEX: kinds by a regular expression; may repeat.")


def named_sites(_: Parameter) -> Form:
    def read(given: list[str]) -> dict[str, list[str]]:
        return {name: words(sites) for name, sites in named(given, "groups").items()}

    return Form(
        list[str],
        read,
        "NAME=SITES: sites that are replaced together, in place of --sites; may repeat.",
    )


def grafts(_: Parameter) -> Form:
    def read(paths: list[Path]) -> dict[str, Any]:
        from workbench.skills import Graft

        return {path.stem: Graft.load(path) for path in paths}

    return Form(list[Path], read, "A graft file that is evaluated as well; may repeat.")


def circuits(_: Parameter) -> Form:
    def read(path: Path) -> dict[str, Any]:
        from workbench.patching import circuits_of, load_circuits
        from workbench.results import Result

        if path.is_file():
            return dict(load_circuits(path))
        return {f"theirs: {name}": own for name, own in circuits_of(Result.load(path)).items()}

    told = (
        "Circuits that are judged as well: a JSON file of one's own, or a saved result of "
        "`patch circuit`."
    )
    return Form(Path, read, told)


def results(_: Parameter) -> Form:
    def read(paths: list[Path]) -> list[Any]:
        from workbench.results import Result

        return [Result.load(path) for path in paths]

    return Form(list[Path], read, "Folders of saved results.")


def reworded(_: Parameter) -> Form:
    """By its name, of the functions of `workbench.tasks`."""

    def read(name: str) -> Any:
        from workbench import tasks
        from workbench.errors import WorkbenchError

        if name not in tasks.__all__:
            raise WorkbenchError(f"Expected a function of workbench.tasks, found {name!r}.")
        return getattr(tasks, name)

    return Form(str, read, "The name of a function of workbench.tasks, for example off_by_one.")


def ends_of_paths(parameter: Parameter) -> Form:
    def read(text: str) -> Any:
        return text if text in parameter.choices else words(text)

    return Form(str, read)


def positions(_: Parameter) -> Form:
    """ "named" as it is; else a list of names and of counts from the prompt's ends."""
    told = "Comma-separated: named, all, each, -1, or the name of a span."
    return Form(str, lambda text: text if text == "named" else _places(text), told)


def position(_: Parameter) -> Form:
    def read(text: str) -> Any:
        from workbench.errors import WorkbenchError

        found = _places(text)
        if len(found) != 1 or text == "named":
            raise WorkbenchError(
                f"Expected one position (all, -1, or a span's name), found {text!r}."
            )
        return None if found[0] == "all" else found[0]

    return Form(str, read, "all, -1, or the name of a span.")


def _places(text: str) -> list[int | str]:
    return [int(word) if word.lstrip("-").isdigit() else word for word in words(text)]


def listed_numbers(parameter: Parameter) -> Form:
    whole = "int" in parameter.kind

    def read(text: str) -> tuple[float, ...]:
        from workbench.errors import WorkbenchError

        found = numbers(text)
        if whole and any(one != int(one) for one in found):
            raise WorkbenchError(f"Expected whole numbers separated by commas, found {text!r}.")
        return tuple(map(int, found)) if whole else found

    return Form(str, read, "Comma-separated.")


def listed_words(parameter: Parameter) -> Form:
    def read(given: Sequence[str]) -> Any:
        if len(given) == 1 and given[0] in parameter.choices:
            return given[0]
        return [word for text in given for word in words(text)]

    return Form(list[str], read, "Comma-separated, or repeated.")


def plain(kind: type) -> Callable[[Parameter], Form]:
    return lambda _: Form(kind, lambda value: value)


def text(parameter: Parameter) -> Form:
    """A line's end is typed as \\n where the default holds one."""
    if parameter.default and r"\n" in parameter.default:
        return Form(str, lambda typed: typed.replace(r"\n", "\n"))
    return Form(str, lambda typed: typed)


# The first whose pattern begins an annotation.
FORMS: tuple[tuple[str, Callable[[Parameter], Form | None]], ...] = (
    (r"Mapping\[str, Graft\]", grafts),
    (r"Mapping\[str, Mapping\[str, Sequence\[", circuits),
    (r"Mapping\[str, PromptSet\]", named_prompts),
    (r"Mapping\[str, str\] \| Callable", named_patterns),
    (r"Mapping\[str, str\]", named_references),
    (r"Mapping\[str, Sequence\[str \| Site\]\]", named_sites),
    (r"PromptSet \| Sequence\[str\] \| Mapping", groups_of_prompts),
    (r"PromptSet \| Sequence\[str\]", texts_or_prompts),
    (r"PromptSet", prompts_of),
    (r"Sequence\[PromptSet\]", several_prompts),
    (r"(Result \| )?(Sequence|Iterable)\[Result\]", results),
    (r"Callable\[\[str\], str\]", reworded),
    (r"Sequence\[tuple\[int, int\] \| str\]", ends_of_paths),
    (r"Sequence\[int \| str \| None\]", positions),
    (r"int \| str", position),
    (r"(float \| )?Sequence\[(int|float)\]", listed_numbers),
    (r"Sequence\[str\] \| None", texts),
    (r"Sequence\[str", listed_words),
    (r"Sequence\[", lambda _: None),
    (r"CheckpointPair", lambda _: None),
    (r"bool", plain(bool)),
    (r"int", plain(int)),
    (r"float", plain(float)),
    (r"str|Literal", text),
)
