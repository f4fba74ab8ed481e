"""What a verb prints of a Result below its headline: groups, lost and won items, texts."""

from __future__ import annotations

from typing import Any

SEEN = 200  # characters of an item's text
# Of a group: what is told, and how.
CHANGES = {"group_score_change": "+.2f", "group_delta_log_p": "+.3f"}


def print_groups(result: Any) -> None:
    """A line for each value of the tag that a Result was told apart by."""
    from workbench.errors import visible
    from workbench.figures.wording import change

    by = result.provenance.parameters.get("by", "group")
    for metric, form in CHANGES.items():
        if not result.has(metric):
            continue
        for task, own in result.metric(metric).groupby("task", sort=False):
            what = "score" if metric == "group_score_change" else "log p of a token"
            print(f"\n{visible(f'{task}: change of the {what} by {by}')}")
            width = max(len(visible(name)) for name in own["group"])
            for _, row in own.iterrows():
                name = visible(row["group"])
                print(f"  {name:{width}}  {change(row, form)}, n = {row['n']:.0f}")


def print_items(result: Any, most: int) -> None:
    """Lost and won items with both answers side by side."""
    from workbench.errors import visible
    from workbench.results.changed_items import changed_items

    for one in changed_items(result) if most else ():
        print(f"\n{visible(one.task)}: {len(one.table)} of {one.every} items {one.way}"
              f"{f', the first {most}' if len(one.table) > most else ''}")  # fmt: skip
        for row in one.table.head(most).itertuples(index=False):
            for name, text in (
                ("asked", _tail(row.asked)), ("expected", row.expected),
                ("base", row.base_said), ("tuned", row.said),
            ):  # fmt: skip
                line = " ".join(str(text).split()).strip()
                print(visible(f"  {name:9}{line[:SEEN]}"))
            print()


def _tail(text: str) -> str:
    return text if len(text) <= SEEN else f"... {text[4 - SEEN :]}"


def print_texts(result: Any, most: int) -> None:
    """What was written, the first texts of each arm."""
    from workbench.errors import visible

    if not most or not result.has("text"):
        return
    for arm, own in result.metric("text").groupby("arm", sort=False):
        print(f"\n{arm}:")
        for row in own.head(most).itertuples(index=False):
            line = " ".join(f"{row.prompt or ''} {row.text}".split())
            print(visible(f"  {line[:SEEN]}"))
