"""The landscape and the text show the table."""

from __future__ import annotations

from tests.figures.looking import words
from workbench import figures


def test_the_landscape_tells_its_share_and_chance(results):
    row = results[0].metric("conflict_share").set_index("member").loc["loud"]
    shown = words(figures.token_landscape(results[0]))
    assert f"{row['value']:.1%} (chance {row['baseline']:.1%})" in shown


def test_the_coloured_text_holds_every_word_once_a_member(results):
    table = results[0].metric("token")
    table = table[(table["prompt"] == "0") & (table["member"] == "loud")]
    shown = words(figures.coloured_text(results[0])).split()
    for word in table["token"]:
        assert shown.count(word.strip()) >= 2  # two members
