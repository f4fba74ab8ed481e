"""docs/architectures.md: what holds on every family of decoders, written and read; docs/adapters.md
is written with it.

    python -m tests.architectures [FAMILY ...]

Families that are named are measured anew, the others keep their rows.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import transformers

from tests.architectures import adapters_page
from tests.architectures.cells import CELLS, HOLDS
from workbench.models import KINDS

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
SAYS = {
    "weights": "every change of a parameter equals that of the plain models (spectral, check, "
    "preflight)",
    "run": "the logits of both models equal those of transformers",
    "texts": "measures of texts and answers (behaviour, forgetting) "
    "equal those of the plain models",
    "sites": "the places of the model that are verified, so that they can be read and replaced",
    "tuco": "the contribution of each block equals that of a plain recomputation",
    "patching": "a rerun from any of these places equals the whole run with plain hooks",
    "grafts": "the base with the change, or a part of it, runs like a model with these weights",
    "TransformerLens": "the bridge to TransformerLens gives the same logits and streams",
}
Rows = Mapping[str, Mapping[str, str]]
USUAL = (
    "resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_hidden", "mlp_out",
    "resid_post",
)  # fmt: skip
FEW = 4  # kinds that are told as missing, where more stand in the cell themselves


def write(rows: Rows, none: Mapping[str, str]) -> None:
    """rows: family -> cell -> what holds. none: family -> why no tiny model of it can be made."""
    counts = {cell: sum(row[cell] == HOLDS for row in rows.values()) for cell in CELLS}
    counts["sites"] = sum(not row["sites"].startswith("refused") for row in rows.values())
    lines = [
        "# Which models can be analysed",
        "",
        f"This page tests one tiny random model of each of the {len(rows) + len(none)} decoder "
        f"families that transformers {transformers.__version__} knows, with a "
        "fine-tuned model whose "
        "every parameter changed. Each cell is compared with plain PyTorch or transformers, and a "
        "base compared with itself gives exactly no change. `make architectures` "
        "measures and writes "
        "this page. Adapters have [their own page](adapters.md).",
        "",
        "| cell | what holds | families |",
        "|---|---|---|",
        *(f"| {cell} | {SAYS[cell]} | {counts[cell]} |" for cell in CELLS),
        "",
        "If a cell is refused, a number in it points to the message of the workbench below. In the "
        "column sites, `all` means "
        + ", ".join(USUAL)
        + "; a kind is listed if it is verified in every block that has one.",
        "",
        "| family | " + " | ".join(CELLS) + " |",
        "|---" * (len(CELLS) + 1) + "|",
    ]
    notes: dict[str, int] = {}
    for family, row in sorted(rows.items()):
        own = [_cell(cell, row[cell], notes) for cell in CELLS]
        lines.append(f"| {family} | " + " | ".join(own) + " |")
    for family, why in sorted(none.items()):
        number = notes.setdefault(f"refused: {why}", len(notes) + 1)
        lines.append(f"| {family} |" + f" [{number}] |" * len(CELLS))
    lines += ["", "## Messages for what is refused", ""]
    lines += [f"{number}. {note.removeprefix('refused: ')}" for note, number in notes.items()]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n")


def _cell(name: str, value: str, notes: dict[str, int]) -> str:
    if value.startswith("refused"):
        return f"[{notes.setdefault(value, len(notes) + 1)}]"
    if name != "sites":
        return value
    kinds = value.split(", ")
    missing = [kind for kind in USUAL if kind not in kinds]
    more = [f"+ {kind}" for kind in kinds if kind not in USUAL]
    if len(missing) > FEW:
        return value
    own = f"all but {', '.join(missing)}" if missing else "all"
    return " ".join([own, *more])


def read() -> dict[str, dict[str, str]]:
    """Family -> cell -> what `measured` gave it."""
    text = TABLE.read_text()
    said = text.partition("## Messages for what is refused")[2]
    notes = dict(line.split(". ", 1) for line in said.splitlines() if line[:1].isdigit())
    found = {}
    for line in text.partition("| family |")[2].splitlines()[2:]:
        if not line.startswith("| "):
            break
        family, *own = [part.strip() for part in line.strip("|").split("|")]
        found[family] = {
            cell: _read(cell, value, notes) for cell, value in zip(CELLS, own, strict=True)
        }
    return found


def _read(cell: str, value: str, notes: Mapping[str, str]) -> str:
    if value.startswith("["):
        return "refused: " + notes[value.strip("[]")]
    if cell != "sites" or not value.startswith("all"):
        return value
    own, *more = value.split(" + ")
    missing = own.removeprefix("all").removeprefix(" but ").split(", ")
    return ", ".join(k for k in KINDS if (k in USUAL and k not in missing) or k in more)


def _measured(family: str) -> dict[str, str] | str:
    """A family's cells, or why there is nothing to measure."""
    from tests.architectures.cells import Case, measured
    from tests.models import zoo

    try:
        zoo.small(family)
    except Exception as error:  # whatever a config that clashes with the sizes raises
        return f"no tiny model of it is made here ({' '.join(str(error).split())[:160]})"
    with tempfile.TemporaryDirectory() as folder:
        try:
            assert Case(family, Path(folder)).plain
        except ValueError:  # an unknown config
            return "transformers does not load by itself what it saves of it"
        return measured(family, Path(folder))


def main(families: list[str]) -> None:
    """Measure these families, or all, and write both pages."""
    from tests.models import zoo

    old = read() if families else {}
    rows, none = {}, {}
    with ProcessPoolExecutor() as pool:
        asked = {one: pool.submit(_measured, one) for one in families or zoo.FAMILIES}
        for family in zoo.FAMILIES:
            found = asked[family].result() if family in asked else old[family]
            if isinstance(found, str):
                none[family] = found
                continue
            rows[family] = found
            if family in asked:
                told = (f"{c}: {v[:60]}" for c, v in found.items() if v != HOLDS)
                print(family, *told, sep=" | ", flush=True)
    write(rows, none)
    adapters_page.PAGE.write_text(adapters_page.page())


if __name__ == "__main__":
    main(sys.argv[1:])
