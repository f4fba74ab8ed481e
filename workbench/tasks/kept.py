"""Texts that a model has written, kept as soon as they are there: an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.files.reading import parsed
from workbench.log import log
from workbench.results import cache


class Kept:
    """One text a line in a file of the cache. key: all that decides what is written but the prompt
    and how it is asked; the model's content, its tokenizer, precision and kind of device."""

    def __init__(self, *key: Any) -> None:
        self.place = cache.folder("written", f"{cache.digest([repr(key).encode()])[:32]}.jsonl")

    def known(self) -> dict[str, str]:
        """Name -> text; a line that was cut off is none."""
        found: dict[str, str] = {}
        for line in _lines(self.place):
            try:
                one = parsed(line)
            except ValueError:
                continue
            if isinstance(one, dict) and isinstance(one.get("text"), str):
                found[str(one.get("name"))] = one["text"]
        return found

    def put(self, texts: dict[str, str]) -> None:
        """Add these. A cache that cannot be written costs another run the work again, no more."""
        lines = [json.dumps({"name": name, "text": text}) + "\n" for name, text in texts.items()]
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            with self.place.open("a", encoding="ascii") as file:
                file.write("".join(lines))
        except OSError as error:
            log.warning(
                "The written texts are not saved (%s), so a second run starts again.", error
            )


def _lines(place: Path) -> list[str]:
    try:
        return place.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
