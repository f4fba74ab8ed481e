"""One step by plain autograd; the null of one model; random steps as long as the harmful one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import WORDS, boxes, model, paired, table_value
from tests.conftest import nudged
from workbench.errors import WorkbenchError
from workbench.forgetting.sharpness import harmful_step, random_step
from workbench.tasks import Prompt, PromptSet, facts

READ = boxes(5)
HARM = PromptSet("harm", facts(4, seed=3, split="train").prompts)


def said(one: Any, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """log-probabilities at an answer, (tokens, vocabulary), and its tokens."""
    ids = torch.tensor([WORDS(prompt.text)["input_ids"]])
    start = len(WORDS(prompt.prompt)["input_ids"])
    return one(ids).logits[0, start - 1 : -1].log_softmax(-1), ids[0, start:]


def nats(one: Any, prompt: Prompt) -> torch.Tensor:
    log_p, ids = said(one, prompt)
    return -log_p.gather(1, ids[:, None]).sum()


def stepped(make: Any, prompts: list[Prompt], sign: float, size: float) -> tuple[Any, float]:
    """The model after the step, and the norm of the gradient."""
    one = make()
    with torch.enable_grad():
        torch.stack([nats(one, p) for p in prompts]).mean().backward()
    own = {n: p for n, p in one.named_parameters() if p.grad is not None}
    norm, whole = (
        float(sum((getattr(p, of) ** 2).sum() for p in own.values())) ** 0.5
        for of in ("grad", "data")
    )
    with torch.no_grad():
        for parameter in own.values():
            parameter += sign * size * whole / norm * parameter.grad
    return one, norm


@pytest.mark.parametrize("given", [True, False])
def test_every_number_by_plain_autograd(given: bool, tmp_path: Path):
    def tuned() -> Any:
        return nudged(model(), 0.05)

    found = wb.forgetting.sharpness(
        paired(model(), tuned(), tmp_path), READ, HARM if given else None, sizes=(0.02,), random=1
    )
    order = np.random.default_rng(0).permutation(len(READ))
    first, last = (sorted(part.tolist()) for part in (order[:2], order[2:]))
    giving = list(HARM) if given else [READ[i] for i in first]
    read = list(READ) if given else [READ[i] for i in last]
    told: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for side, make in (("base", model), ("tuned", tuned)):
        before = make()
        after, norm = stepped(make, giving, -1.0 if given else 1.0, 0.02)
        kl, moved, right = [], [], []
        with torch.no_grad():
            for prompt in read:
                (p, ids), (q, _) = said(before, prompt), said(after, prompt)
                kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
                moved.append(float(nats(after, prompt) - nats(before, prompt)))
                right.append(
                    float((q.argmax(-1) == ids).all()) - float((p.argmax(-1) == ids).all())
                )
        at = {"side": side, "arm": "harmful", "x": 0.02}
        for metric, values in (("kl", kl), ("loss_change", moved), ("score_change", right)):
            wanted = float(np.mean(values))
            assert table_value(found, metric, **at) == pytest.approx(wanted, rel=2e-3, abs=1e-5)
        assert table_value(found, "gradient_norm", side=side) == pytest.approx(norm, rel=1e-3)
        told[side] = np.array(kl), np.array(moved)
    for place, metric in enumerate(("kl_difference", "loss_difference")):
        apart = (told["tuned"][place] - told["base"][place]).mean()
        assert table_value(found, metric) == pytest.approx(apart, rel=5e-3, abs=1e-5)


def test_one_model_differs_nowhere_and_any_batch_says_the_same(tmp_path: Path):
    pair = paired(model(), model(), tmp_path)
    found, again = (
        wb.forgetting.sharpness(pair, READ, sizes=(0.001, 0.01), batch_size=n) for n in (1, 32)
    )
    for metric in ("kl_difference", "loss_difference"):
        assert (found.metric(metric)[["value", "low", "high"]] == 0).all(axis=None)
    values = (one.table["value"].to_numpy(float) for one in (found, again))
    assert np.allclose(*values, rtol=1e-2, atol=1e-5)
    kl = found.metric("kl").set_index(["side", "arm", "x"])["value"]
    assert kl["base", "harmful", 0.01] > kl["base", "harmful", 0.001] > 0
    assert kl["base", "harmful", 0.01] > 2 * kl["base", "random", 0.01]


def test_a_random_step_is_as_long_in_each_parameter():
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "c": torch.zeros(3)}
    step = harmful_step(gradients, 10.0)
    assert step["a"].tolist() == [6.0, 0.0]
    assert step["b"].item() == 8.0
    drawn = random_step(step, 0)
    for name, own in step.items():
        assert float(drawn[name].norm()) == pytest.approx(float(own.norm()))
    assert (drawn["c"] == 0).all()
    assert all((own == 0).all() for own in harmful_step({"a": torch.zeros(2)}, 1.0).values())


@pytest.mark.parametrize(
    ("change", "told"),
    [({"prompts": READ[:3]}, "4 prompts or more"), ({"harmful": HARM[:0]}, "and none"),
     ({"sizes": ()}, "sizes between 0 and 1"), ({"random": 0}, "1 random step or more")],
)  # fmt: skip
def test_what_says_nothing_is_refused(tmp_path: Path, change: dict[str, Any], told: str):
    pair = paired(model(), model(), tmp_path)
    with pytest.raises(WorkbenchError, match=re.escape(told)):
        wb.forgetting.sharpness(pair, **({"prompts": READ} | change))
