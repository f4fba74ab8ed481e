"""The figure of emulated fine-tuning."""

from __future__ import annotations

from workbench import figures


def test_emulation_is_drawn_again_as_the_same_file(results, tmp_path):
    """The one figure of which figures/ keeps no Result; test_saving holds the others to it."""
    made = [one for one in results if one.analysis == "behaviour.emulate"]
    first, again = (figures.save_all(made, tmp_path / name) for name in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert len(first) == 2
