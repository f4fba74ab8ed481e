"""What is said once for several calls is as if each had said it."""

from __future__ import annotations

import pytest

import workbench as wb
from tests.calls import Asked, write_pair
from workbench.analysis.running import given

OWN = Asked(6)
ALL = ("device", "dtype", "batch_size", "seed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> wb.CheckpointPair:
    return write_pair(tmp_path_factory.mktemp("pair"))


def test_a_block_says_it_for_every_call_inside(pair):
    with wb.running(seed=3, dtype="bfloat16", batch_size=2):
        inside = wb.forgetting.retention(pair, [OWN.prompts], texts=OWN.texts)
        weights = wb.spectral.delta_spectrum(pair)  # has none of them
    said = wb.forgetting.retention(
        pair, [OWN.prompts], texts=OWN.texts, seed=3, dtype="bfloat16", batch_size=2
    )
    plain = wb.forgetting.retention(pair, [OWN.prompts], texts=OWN.texts)
    assert inside.fingerprint == said.fingerprint != plain.fingerprint
    assert (inside.provenance.seed, inside.provenance.dtype) == (3, "bfloat16")
    assert weights.fingerprint == wb.spectral.delta_spectrum(pair).fingerprint


def test_a_calls_own_arguments_and_inner_blocks_come_first(pair):
    with wb.running(seed=3, batch_size=2):
        assert wb.spectral.intruders(pair, k=2, seed=5).provenance.seed == 5
        with wb.running(seed=4):
            assert given(ALL) == {"seed": 4, "batch_size": 2}
            assert wb.spectral.intruders(pair, k=2).provenance.seed == 4
        assert wb.spectral.intruders(pair, k=2).provenance.seed == 3
    assert given(ALL) == {}
    assert wb.spectral.intruders(pair, k=2).provenance.seed == 0


def test_a_device_that_is_not_there_is_said_at_once():
    with (
        pytest.raises(wb.WorkbenchError, match="Expected a device such as"),
        wb.running(device="gpu"),
    ):
        pass
    assert given(ALL) == {}


def test_members_of_a_family_are_named_by_it_too(pair, tmp_path):
    """What is kept of a member is found again by what it ran with, wherever that was said."""
    family = wb.Family(pair.base, {"one": pair.tuned})
    with wb.running(seed=3):
        inside = wb.over(family, "spectral.intruders", k=2, store=tmp_path)
    kept = {folder.name for folder in tmp_path.iterdir()}
    assert inside.provenance.seed == 3
    assert wb.over(family, "spectral.intruders", k=2, seed=3, store=tmp_path).provenance.seed == 3
    assert {folder.name for folder in tmp_path.iterdir()} == kept
