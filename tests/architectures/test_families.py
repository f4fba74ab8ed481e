"""The families people fine-tune most, and one of every odd shape, hold what the table says.

All of transformers' families: `make architectures`, which writes docs/architectures.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architectures import adapters_page, cells
from tests.architectures.table import TABLE, read
from tests.models import zoo

TESTS = Path(__file__).parents[1]
MOST = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next",
    "qwen3_5", "gemma", "gemma2", "gemma3_text", "gemma3", "gemma4_text", "phi3", "olmo2", "olmo3",
    "gpt_oss", "deepseek_v3", "glm4", "glm4_moe", "granite", "cohere2", "smollm3", "falcon",
    "gpt2", "gpt_neox", "opt", "bloom", "qwen2_5_vl", "gemma4",
)  # fmt: skip
# A state-space model, hybrids, experts of attention, no stream of blocks, embeddings in front.
ODD = ("mamba2", "falcon_h1", "granitemoehybrid", "jetmoe", "gemma3n_text", "openai-gpt")
# What the twenty most downloaded must hold.
HELD = ("weights", "run", "texts", "tuco", "patching", "grafts")


@pytest.mark.parametrize("family", MOST + ODD)
def test_every_cell_is_what_the_table_says(family: str, tmp_path: Path):
    """TransformerLens is in the whole run alone: its bridges are slow to make."""
    only = tuple(name for name in cells.CELLS if name != "TransformerLens")
    found, known = cells.measured(family, tmp_path, only), read()[family]
    assert {cell: found[cell] for cell in only} == {cell: known[cell] for cell in only}
    if family in MOST:
        assert {cell: found[cell] for cell in HELD} == dict.fromkeys(HELD, cells.HOLDS)


def test_the_table_has_every_family_once():
    assert sorted(read()) == sorted(zoo.FAMILIES)


def test_the_table_says_how_many_hold():
    """The counts above the table are those of its rows, and ninety families hold at least."""
    rows, text = read(), TABLE.read_text()
    for cell in HELD:
        held = sum(row.get(cell) == cells.HOLDS for row in rows.values())
        told = re.search(rf"^\| {cell} \| .* \| (\d+) \|$", text, re.M)
        assert told, cell
        assert int(told[1]) == held
        assert held >= 90


def test_no_cell_is_a_fault():
    cells_of_all = [cell for row in read().values() for cell in row.values()]
    assert not [cell for cell in cells_of_all if cell.startswith("fault")]


def test_the_page_of_adapters_is_what_the_tests_hold():
    assert adapters_page.PAGE.read_text() == adapters_page.page()
    assert all((TESTS / form.test).exists() for form in adapters_page.FORMS)
