"""What a verb prints: lines and tables that fit the terminal; below the headline of a Result its
groups, lost and gained items, and texts."""

from __future__ import annotations

import re
import sys
from typing import Any

SEEN = 200  # characters of an item's text
WIDEST = 10_000  # characters of a line that is not broken, where no terminal shows it
WORD = 24  # characters of a table's cell that are never parted
GAP = 2  # spaces between the columns of a table
# Spaces that no line is broken at: in an interval, and before what a number counts.
TOGETHER = re.compile(
    r"\[[^\[\]]{1,40}\]%?|\b[np] [=<] \d+|\d+ of \d+|[\d.,]+ (?:MiB|GiB|minutes?|s)\b"
)
HELD = "\ue000"  # stands for such a space: of the private characters, so that it is no space
# Of a group: what is told, and how.
CHANGES = {"group_score_change": "+.2f", "group_delta_log_p": "+.3f"}


def say(text: str, hang: str = "", *, error: bool = False) -> None:
    """A line on stdout, or on stderr, broken between words if a terminal is narrower; hang: what
    begins the lines after the first. No interval and no number with its unit is parted."""
    file = sys.stderr if error else sys.stdout
    if not file.isatty():
        print(text, file=file)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file)
    held = Text(TOGETHER.sub(lambda found: found[0].replace(" ", HELD), text))
    width = max(20, console.width - len(hang))
    for number, line in enumerate(held.wrap(console, width, overflow="fold")):
        print(f"{hang if number else ''}{line.plain.rstrip()}".replace(HELD, " "), file=file)


def show(table: Any, json: bool) -> None:
    if json:
        print(table.to_json(orient="records", lines=True), end="")
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDEST
    console = Console(width=width, highlight=False, soft_wrap=False)
    console.print(table_of(table, console.width))


def table_of(table: Any, width: int) -> Any:
    """A data frame whose cells break between words; if its columns do not fit side by side, a
    block of `column: value` lines for each row."""
    from rich.table import Table
    from rich.text import Text

    from workbench.errors import visible

    cells = {str(name): [visible(str(cell)) for cell in table[name]] for name in table}
    whole = {
        name: not any(" " in cell or len(cell) > WORD for cell in own)
        for name, own in cells.items()
    }
    least = [
        max(len(word) if whole[name] else min(len(word), WORD)
            for cell in (name, *own) for word in cell.split() or [""])
        for name, own in cells.items()
    ]  # fmt: skip
    if sum(least) + GAP * (len(least) - 1) > width:
        return _blocks(cells)
    made = Table(box=None, pad_edge=False, header_style="")
    for name in cells:
        made.add_column(Text(name), overflow="fold", no_wrap=whole[name])
    for row in zip(*cells.values(), strict=True):
        made.add_row(*map(Text, row))
    return made


def _blocks(cells: dict[str, list[str]]) -> Any:
    """Every row of a table below the one before it, its columns as lines."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for number, row in enumerate(zip(*cells.values(), strict=True)):
        if number:
            made.add_row("", "")
        for name, cell in zip(cells, row, strict=True):
            made.add_row(Text(name), Text(cell))
    return made


def print_groups(result: Any) -> None:
    """A line for each value of the tag whose scores a Result reports."""
    from workbench.errors import visible
    from workbench.figures.wording import change

    by = result.provenance.parameters.get("by", "group")
    for metric, form in CHANGES.items():
        if not result.has(metric):
            continue
        for task, own in result.metric(metric).groupby("task", sort=False):
            what = "score" if metric == "group_score_change" else "log p of a token"
            print()
            say(visible(f"{task}: change of the {what} by {by}"))
            width = max(len(visible(name)) for name in own["group"])
            for _, row in own.iterrows():
                name = visible(row["group"])
                say(f"  {name:{width}}  {change(row, form)}, n = {row['n']:.0f}", " " * 4)
    worst = result.table[result.table["metric"] == "group_worst_score"]
    for _, row in worst.iterrows():
        about = f"score {change(row, '.2f')}, base {row['baseline']:.2f}, n = {row['n']:.0f}"
        name = visible(f"{row['task']}: worst {by} {row['group']}")
        print()
        say(f"{name} ({about}; picked on the other half of the items)", " " * 4)


def print_items(result: Any, most: int) -> None:
    """Lost and gained items with both answers side by side."""
    from workbench.errors import visible
    from workbench.results.changed_items import changed_items

    for one in changed_items(result) if most else ():
        first = f", the first {most}:" if len(one.table) > most else ":" if len(one.table) else ""
        print()
        say(f"{visible(one.task)}: {len(one.table)} of {one.every} items {one.way}{first}")
        for row in one.table.head(most).itertuples(index=False):
            for name, text in (
                ("asked", _tail(row.asked)), ("expected", row.expected),
                ("base", row.base_said), ("tuned", row.said),
            ):  # fmt: skip
                line = " ".join(str(text).split())
                say(visible(f"  {name:9}{head(line)}"), " " * 11)
            print()


def head(text: str) -> str:
    """The first words of a text, in at most SEEN characters."""
    if len(text) <= SEEN:
        return text
    return f"{text[: SEEN - 3].rpartition(' ')[0] or text[: SEEN - 4]} ..."


def _tail(text: str) -> str:
    """Its last words; a prompt ends with what is asked."""
    if len(text) <= SEEN:
        return text
    return f"... {text[3 - SEEN :].partition(' ')[2] or text[4 - SEEN :]}"


def print_texts(result: Any, most: int) -> None:
    """The first texts that each arm wrote."""
    from workbench.errors import visible

    if not most or not result.has("text"):
        return
    for arm, own in result.metric("text").groupby("arm", sort=False):
        print(f"\n{arm}:")
        for row in own.head(most).itertuples(index=False):
            line = " ".join(f"{row.prompt or ''} {row.text}".split())
            say(visible(f"  {head(line)}"), " " * 4)
