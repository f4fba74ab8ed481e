"""The identities of emulated fine-tuning, and what grows with beta."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import boxes, model, no_gradients, paired
from tests.conftest import nudged, tiny
from tests.tuco.conftest import write
from workbench.behaviour.emulate import emulated
from workbench.errors import WorkbenchError

PROMPTS = boxes(12)
BETAS = (-1.0, 0.0, 0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory):
    """The small base as its own large model, by arm and beta."""
    folder = tmp_path_factory.mktemp("own")
    with torch.no_grad():
        pair = paired(model(), nudged(model(), scale=0.3), folder)
    large = str(folder / "base")
    found = wb.behaviour.emulate(
        pair, PROMPTS, large, large_tuned=str(folder / "tuned"), betas=BETAS
    )
    return found.table.set_index(["metric", "arm", "x"])["value"].sort_index()


@pytest.mark.parametrize("metric", ["score", "loss", "kl"])
def test_with_the_base_as_large_model_beta_leads_from_base_to_tuned(own, metric: str):
    ends = {arm: own[metric, arm].iloc[0] for arm in ("base", "tuned", "large", "large, tuned")}
    assert ends["base"] == ends["large"]
    assert own[metric, "emulated", 0.0] == pytest.approx(ends["base"], abs=1e-6)
    assert own[metric, "emulated", 1.0] == pytest.approx(ends["tuned"], abs=1e-5)
    assert ends["tuned"] == pytest.approx(ends["large, tuned"], abs=1e-6)


def test_kl_from_the_large_model_grows_with_beta(own):
    kl = own["kl", "emulated"].sort_index()
    assert kl.loc[0.0] == pytest.approx(0, abs=1e-6)
    assert (np.diff(kl.loc[0.0:]) > 0).all()
    assert kl.loc[-1.0] > 0


def test_log_probabilities_add_up_by_hand():
    large, base, tuned = (torch.tensor(p).log() for p in ([0.5, 0.5], [0.8, 0.2], [0.2, 0.8]))
    # odds 1 : 1 of the large model times (1/4) : 4 of the change
    assert emulated(large, base, tuned, 1.0).exp().tolist() == pytest.approx([1 / 17, 16 / 17])
    assert emulated(large, base, tuned, 0.0).exp().tolist() == pytest.approx([0.5, 0.5])


def test_another_vocabulary_is_refused(tmp_path: Path):
    with torch.no_grad():
        pair = paired(model(), nudged(model()), tmp_path)
        other = write(tiny("llama"), tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"apple"', '"pear"'))
    with pytest.raises(WorkbenchError, match="vocabulary"):
        wb.behaviour.emulate(pair, PROMPTS, str(other))
    with pytest.raises(WorkbenchError, match="beta"):
        wb.behaviour.emulate(pair, PROMPTS, str(tmp_path / "base"), betas=())


__all__ = ["no_gradients"]
