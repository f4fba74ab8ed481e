"""The same call gives the same table: again, and in other batches. On a GPU: make gpu."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.calls import CALLS, Asked, write_pair
from workbench.forgetting import side_answers
from workbench.results.result import Result
from workbench.study.catalogue import METHODS

N, BATCH = 12, 6  # prompts of each kind, of unequal lengths
BATCHES = {"rtol": 1e-4, "atol": 2e-5}  # float32 sums in another order
# Its areas' intervals are ratios whose resampled gap can be near 0, which enlarges that rounding.
ENLARGED = {"patching.edge_circuits": {"rtol": 1e-3}}
# Training steps are made of batches there: their size is a parameter of what is learned.
TRAINED = {"forgetting.revive", "forgetting.verdict", "patching.mask"}
FUNCTIONS = {one.key: one.function for one in METHODS}
UNBATCHED = {
    key for key in CALLS if "batch_size" not in inspect.signature(FUNCTIONS[key]).parameters
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> wb.CheckpointPair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def first(pair: wb.CheckpointPair):
    """key -> the Result of six prompts a batch, on the CPU."""
    return cache(lambda key: made(pair, key, batch_size=BATCH))


def made(pair: wb.CheckpointPair, key: str, **run: Any) -> Result:
    """One analysis, which reads its models anew."""
    side_answers._KEPT.clear()
    return CALLS[key](pair, Asked(N), **run)


def alike(found: pd.DataFrame, wanted: pd.DataFrame, **tolerance: float) -> None:
    """Words and counts the same, numbers within the tolerance, NaN in the same places."""
    assert list(found) == list(wanted)
    assert len(found) == len(wanted)
    for name in wanted:
        if pd.api.types.is_float_dtype(wanted[name]):
            ours, theirs = (
                table[name].to_numpy(float, na_value=np.nan) for table in (found, wanted)
            )
            np.testing.assert_allclose(ours, theirs, equal_nan=True, err_msg=name, **tolerance)
        else:
            pd.testing.assert_series_equal(found[name], wanted[name])


@pytest.mark.parametrize("key", CALLS)
def test_again(key: str, pair: wb.CheckpointPair, first):
    """And what the Results say of how they were made."""
    runs = key.startswith(("patching.", "skills."))
    again = made(pair, key, batch_size=BATCH, **{"dtype": "float32"} if runs else {})
    pd.testing.assert_frame_equal(again.table, first(key).table, check_exact=True)
    told, takes = again.provenance, inspect.signature(FUNCTIONS[key]).parameters
    assert told.device == "cpu"
    assert "seed" not in takes or told.seed == 0
    if runs:
        assert (first(key).provenance.dtype, told.dtype) == ("as stored", "float32")


@pytest.mark.parametrize("key", [key for key in CALLS if key not in TRAINED | UNBATCHED])
def test_in_other_batches(key: str, pair: wb.CheckpointPair, first):
    for size in (1, N + 5):
        near = BATCHES | ENLARGED.get(key, {})
        alike(made(pair, key, batch_size=size).table, first(key).table, **near)


def test_on_models_that_are_kept(pair: wb.CheckpointPair, first):
    """One after the other in one block: each gives what it gives alone, and leaves the models as
    they were, or the next would load its own."""
    with pair.models(keep=True) as sides:
        for key in CALLS:
            again = made(pair, key, batch_size=BATCH)
            pd.testing.assert_frame_equal(again.table, first(key).table, check_exact=True)
            with pair.models() as same:
                assert same is sides, f"{key} changed the models"


def test_lengths_are_unequal():
    """Or nothing would be padded."""
    words = wb.lab.shipped.tokenizer()
    assert len({len(words(prompt.prompt)["input_ids"]) for prompt in Asked(N).prompts}) > 1


def test_another_seed_gives_other_numbers(pair: wb.CheckpointPair, first):
    """A control: the tables are not the same whatever is asked."""
    other = made(pair, "patching.activation", batch_size=BATCH, seed=1).table
    with pytest.raises(AssertionError):
        alike(other, first("patching.activation").table, **BATCHES)
