"""The sentence of retention holds its numbers."""

from __future__ import annotations

from tests.figures.synthetic import family, retention
from workbench import figures


def test_the_sentence_holds_the_numbers():
    kept = figures.headline(retention(family(2)))
    assert "lora-r1: pre-training loss +0.240 [+0.210, +0.270] nats/token" in kept
    assert "score on boxes 0.20 to 0.90 [0.87, 0.93]" in kept
    assert "200 prompts, 200 texts" in kept
