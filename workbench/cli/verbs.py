"""A verb for every public function: its options from signature and docstring, its help from its
record. `wb.patching.cross_model` is `workbench patch cross-model`.

Nothing of an analysis is imported until its verb runs.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from workbench.cli.options import (
    FULL,
    SHOW,
    SHOWN,
    Base,
    Batch,
    Device,
    Dtype,
    Json,
    Large,
    Members,
    Save,
    Seed,
    Show,
    Tuned,
    fewer,
    finish,
    full,
    named,
)
from workbench.cli.reading import reads_prompts
from workbench.cli.signatures import Parameter, Signature, signatures
from workbench.cli.values import Form, form

FAMILIES = {  # group of verbs -> family
    "spectral": "spectral", "tuco": "tuco", "patch": "patching", "skills": "skills",
    "forget": "forgetting", "behaviour": "behaviour", "edit": "edits",
}  # fmt: skip
PATH = "str | Path"  # an argument that is a file or a folder
# What is called alike in every verb, whatever its docstring says.
SHARED = {"batch_size": Batch, "seed": Seed, "device": Device, "dtype": Dtype, "large": Large}
# Earlier names, which still work and which no help shows.
OLD_VERBS = {"spectrum": "delta-spectrum", "scale": "scale-intruders", "cmap": "cross-model"}
OLD_OPTIONS = {  # what is typed -> what it stands for: the first whose option the verb has
    "--other": (["--others"], ["--prompts"]), "--task": (["--prompts"], ["--tasks"]),
    "--prompts": (["--tasks"],), "--text": (["--texts"],), "--conjugate": (["--conjugates"],),
    "--rate": (["--lr"],), "--graft": (["--grafts"],), "--theirs": (["--circuits"],),
    "--noising": (["--direction", "noising"],), "--own-answer": (["--answer", "base"],),
    "--mistakes": (["--mistake", "off_by_one"],), "--streamed": (["--base", "disk"],),
}  # fmt: skip


class Verb(TyperCommand):
    """A command that knows its earlier options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for one in self.params for name in (*one.opts, *one.secondary_opts)}
        return super().parse_args(ctx, [word for one in args for word in _today(one, known)])


def _today(word: str, known: set[str]) -> list[str]:
    """One word of a command line as it is typed today."""
    name, equals, value = word.partition("=")
    if name in known:
        return [word]
    for option, *values in OLD_OPTIONS.get(name, ()):
        if option in known:
            return [f"{option}={value}"] if equals else [option, *values]
    return [word]


class Verbs(TyperGroup):
    """The verbs of one family, made when they are asked for. by_hand: those of no function."""

    family = ""
    by_hand: Mapping[str, Callable[..., None]] = {}

    def _made(self) -> Mapping[str, Any]:
        if not self.commands:
            app = typer.Typer(rich_markup_mode=None)
            for one in signatures(self.family):
                if verb_of(one) not in self.by_hand:
                    app.command(verb_of(one), cls=Verb)(command(one))
            for name, function in self.by_hand.items():
                app.command(name)(function)
            self.commands.update(typer.main.get_group(app).commands)
        return self.commands

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self._made()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._made().get(OLD_VERBS.get(cmd_name, cmd_name))


class TucoVerbs(Verbs):
    """`workbench tuco BASE TUNED` is that of its contribution, or with --alphas of scaling."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self._made():
            scaled = any(one.partition("=")[0] == "--alphas" for one in args)
            args = ["scaling" if scaled else "contribution", *args]
        return super().parse_args(ctx, args)


class ForgetVerbs(Verbs):
    """`workbench forget retention --samples BASE TUNED` is that of samples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = [one.partition("=") for one in args]
        if args[:1] == ["retention"] and any(name == "--samples" for name, *_ in words):
            given = [[value] if equals else [] for name, equals, value in words
                     if name == "--samples"]  # fmt: skip
            there = [
                one for one, (name, *_) in zip(args, words, strict=True) if name != "--samples"
            ]
            args = ["samples", *(value for one in given for value in one), *there[1:]]
        return super().parse_args(ctx, args)


OWN = {"tuco": TucoVerbs, "forget": ForgetVerbs}  # groups in which a verb hands over to another


def group(name: str, by_hand: Mapping[str, Callable[..., None]] | None = None) -> typer.Typer:
    """The verbs of a family as a part of the command line."""
    made: Any = type(
        name, (OWN.get(name, Verbs),), {"family": FAMILIES[name], "by_hand": by_hand or {}}
    )
    return typer.Typer(cls=made, no_args_is_help=True, rich_markup_mode=None)


def verb_of(signature: Signature) -> str:
    return signature.name.replace("_", "-")


def command(signature: Signature) -> Callable[..., None]:
    """What typer makes a command of."""
    asked = list(_asked(signature))

    def run(**given: Any) -> None:
        import workbench as wb
        from workbench.analysis.cost import told

        function = getattr(getattr(wb, signature.family), signature.name)
        out, json, quick = given.pop("out"), given.pop("json"), not given.pop(FULL, False)
        shown = given.pop(SHOW, 0)
        arguments = {}
        for parameter in signature.parameters:
            few = signature.record.get("few", {}) if quick else {}
            found = _read(parameter, given, few.get(parameter.name))
            if found is None and quick:
                found = signature.record.get("quick", {}).get(parameter.name)
            if found is not None:
                arguments[parameter.name] = found
        with told():
            made = function(**arguments)
        finish(made, out, json, shown)

    run.__signature__ = inspect.Signature(asked)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in asked}
    run.__doc__ = _help(signature)
    sets = any("PromptSet" in one.kind for one in signature.parameters)
    return reads_prompts(run) if sets else run


def _help(signature: Signature) -> str:
    paper, example = (signature.record.get(name, "") for name in ("paper", "example"))
    group = next(name for name, family in FAMILIES.items() if family == signature.family)
    subjects = {"CheckpointPair": "BASE TUNED", "Family": "BASE", PATH: "BASE TUNED"}
    subject = subjects.get(signature.parameters[0].kind)
    words = ["workbench", group, verb_of(signature), subject, example]
    typed = " ".join(word for word in words if word)
    source = paper and f"Source: {paper}.\n\n"
    return f"{signature.question}\n\n{source}Example: {typed}"


def _asked(signature: Signature) -> Iterator[inspect.Parameter]:
    """What the command line asks for, as parameters of a function of its own."""
    smaller = signature.record.get("quick", {})
    for parameter in signature.parameters:
        if parameter.kind == "CheckpointPair" and parameter.needed:
            yield _option("BASE", Base)
            yield _option("TUNED", Tuned)
        elif parameter.kind == "Family":
            yield _option("BASE", Base)
            yield _option("member", Members, None)
        elif parameter.kind == "Counterfactuals":
            yield from _desiderata(signature.record.get("few", {}).get(parameter.name, WHOLE))
        elif _shared(parameter):
            yield _by_name(parameter, smaller.get(parameter.name))
        elif (found := form(parameter)) is not None:
            typed = _typed(parameter, signature)
            yield _by_form(parameter, found, typed, smaller.get(parameter.name))
    if more := _more(signature):
        yield _option(FULL, full(more), False)
    if signature.record.get("items"):
        yield _option(SHOW, Show, SHOWN)
    yield _option("out", Save, None)
    yield _option("json", Json, False)


def _more(signature: Signature) -> str:
    """What --full brings back, as it would be typed; nothing if that is the default anyway."""
    few, quick = (signature.record.get(name, {}) for name in ("few", "quick"))
    parts = ["all prompts"] if few else []
    for parameter in signature.parameters:
        if parameter.name in quick:
            shown = _shown(parameter.default)
            typed = _typed(parameter, signature)
            default, every = _literal(parameter.default), f"all {parameter.name}"
            if isinstance(default, bool):
                parts.append(typed if default else typed.replace("--", "--no-"))
            elif parameter.default == "None":
                parts.append(f"no limit by {typed}")
            else:
                parts.append(f"{typed} {shown}" if shown else every)
    return ", ".join(parts)


def _option(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> Any:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _typed(parameter: Parameter, signature: Signature) -> str:
    """The option of a parameter: the prompts that must be given are --prompts in every verb."""
    sets = [one for one in signature.parameters if one.needed and one.kind.startswith("PromptSet")]
    if sets and sets[0] is parameter:
        return "--prompts"
    return f"--{parameter.name.strip('_').replace('_', '-')}"


def _by_name(parameter: Parameter, smaller: Any) -> inspect.Parameter:
    """An option of SHARED. smaller: as in `_by_form`."""
    known = SHARED[parameter.name]
    if smaller is None:
        default = "float32" if parameter.name == "dtype" else _literal(parameter.default)
        return _option(parameter.name, known, default)
    kind, option = get_args(known)
    shown = typer.Option(help=option.help, show_default=str(smaller))
    return _option(parameter.name, Annotated[kind | None, shown], None)


def _by_form(parameter: Parameter, found: Form, typed: str, smaller: Any) -> inspect.Parameter:
    """smaller: what the command line chooses in place of the default, None where it does not."""
    help = (found.help if _private(parameter.help) else parameter.help).replace("`", "")
    plain = found.type in (bool, int, float, str) and found.help == ""
    if parameter.needed and (
        parameter.kind in ("str", PATH) or parameter.kind.endswith("[Result]")
    ):
        return _option(parameter.name, Annotated[found.type, typer.Argument(help=help)])
    flags = [f"{typed}/--no-{typed[2:]}"] if found.type is bool else [typed]
    metavar = "|".join(parameter.choices) if found.type is str and plain else None
    shown = True if plain else _shown(parameter.default)
    if isinstance(smaller, bool):
        shown = flags[0].split("/")[not smaller].removeprefix("--")
    elif smaller is not None:
        shown = _shown(repr(smaller))
    option = typer.Option(*flags, help=help, metavar=metavar or None, show_default=shown)
    if plain and not parameter.needed and smaller is None:
        default = _literal(parameter.default)
        kind = found.type if default is not None else found.type | None
        if isinstance(default, str):
            default = default.replace("\n", r"\n")
        return _option(parameter.name, Annotated[kind, option], default)
    if parameter.needed and not parameter.kind.startswith("Mapping"):
        return _option(parameter.name, Annotated[found.type, option])
    return _option(parameter.name, Annotated[found.type | None, option], None)


def _shared(parameter: Parameter) -> bool:
    return parameter.name in SHARED and not parameter.needed


def _private(help: str) -> bool:
    """Whether a docstring's words say nothing to somebody who types."""
    return not help or help.startswith(("As ", "Name ->", "Stage ->", "Arm ->", "A step ->"))


def _literal(source: str | None) -> Any:
    try:
        return ast.literal_eval(source or "None")
    except ValueError:
        return None


def _shown(source: str | None) -> str | bool:
    """A default of several values as it would be typed."""
    found = _literal(source)
    if isinstance(found, tuple | list):
        words = (f"{one:g}" if isinstance(one, float) else str(one) for one in found)
        return ",".join(words) or False
    return str(found) if found is not None else False


def _read(parameter: Parameter, given: Mapping[str, Any], most: int | None) -> Any:
    """The argument, from what was typed; None where a default holds. most: prompts to take."""
    import workbench as wb

    if parameter.kind == "CheckpointPair" and parameter.needed:
        return wb.load_pair(given["BASE"], given["TUNED"])
    if parameter.kind == "Family":
        return wb.load_family(given["BASE"], dict(named(given["member"])))
    if parameter.kind == "Counterfactuals":
        words = wb.Checkpoint.parse(given["BASE"]).tokenizer() if given["natural"] else None
        made = {name: given[name] for name in ("kind", "count", "seed")}
        n = given["n"] or most or WHOLE
        return wb.tasks.desiderata(**made, n=n, tokenizer=words)
    value = given.get(parameter.name)
    found = None if _shared(parameter) else form(parameter)
    if found is None:
        return value
    if value is None:
        return {} if parameter.needed else None
    read = found.read(value)
    return read if most is None else fewer(read, most)


WHOLE = 200  # pairs of prompts that are drawn with --full


def _desiderata(few: int) -> Iterator[inspect.Parameter]:
    """What pairs of prompts are drawn by. few: how many where nothing is typed."""
    yield _option("kind", Annotated[str, typer.Option(
        help="What the pairs vary: object value, box label or positional.")], "object value",
    )  # fmt: skip
    yield _option("n", Annotated[int | None, typer.Option(
        help="Number of pairs of prompts; one half trains, the other is judged.",
        show_default=str(few))], None,
    )  # fmt: skip
    yield _option("count", Annotated[int, typer.Option(help="Number of boxes in a prompt.")], 7)
    yield _option("natural", Annotated[bool, typer.Option(
        help="Use ordinary English spacing, for a subword tokenizer.")], False,
    )  # fmt: skip
