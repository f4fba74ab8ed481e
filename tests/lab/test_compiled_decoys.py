"""Decoys change most where nothing depends on it, and a Llama computes what the GPT-2 computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.lab.test_compiled import logits
from workbench.errors import WorkbenchError
from workbench.lab.compiled import programs as of
from workbench.lab.compiled.compiler import weights
from workbench.lab.compiled.decoys import LLAMAS, specs
from workbench.lab.compiled.llama import llama, save_llama
from workbench.lab.compiled.pairs import pairs
from workbench.lab.compiled.pairs import specs as every
from workbench.lab.known import Known
from workbench.lab.planted import read
from workbench.scoreboard.outside import norm

PLAIN = {one.name: one for one in every() if not one.name.endswith(("-decoy", "-llama"))}
OF = {
    "copy-decoy": "copy-learned", "two-steps-decoy": "two-steps-learned",
    "entities-decoy": "entities-learned", "negation-decoy": "negation-learned",
    "induction-decoy": "induction-strengthened", "backdoor-decoy": "copy-backdoor",
    "facts-decoy": "facts-rank-3",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    names = [*OF, *OF.values(), *LLAMAS, *(f"{name}-llama" for name in LLAMAS)]
    return pairs(tmp_path_factory.mktemp("compiled"), [*dict.fromkeys(names)])


def test_every_decoy_and_llama_is_looked_at():
    assert {one.name for one in specs(PLAIN)} == {*OF, *(f"{name}-llama" for name in LLAMAS)}


@pytest.mark.parametrize("name", [*OF])
def test_a_decoy_changes_no_answer(name: str, made: dict[str, Known]):
    decoy, plain = made[name], made[OF[name]]
    first, second = (logits(one.tuned, plain.prompts)[0] for one in (decoy, plain))
    torch.testing.assert_close(first, second, atol=2e-3, rtol=1e-3)
    assert {*decoy.places["matrix"]} == {*plain.places["matrix"]}
    assert any(
        not torch.equal(weight, read(plain.tuned)[key]) for key, weight in read(decoy.tuned).items()
    )


@pytest.mark.parametrize("name", sorted({*OF} - {"facts-decoy", "backdoor-decoy"}))
def test_its_largest_change_is_where_nothing_depends_on_it(name: str, made: dict[str, Known]):
    known = made[name]
    sizes = norm(known.base, known.tuned, known.prompts)["matrix"]
    assert max(sizes, key=sizes.__getitem__) not in known.places["matrix"]


def test_decoy_directions_are_larger_and_of_the_same_matrix(made: dict[str, Known]):
    """Three of length 2, as without them, and three of 5, 6.25 and 7.5 times as much."""
    known = made["facts-decoy"]
    name = "transformer.h.1.mlp.c_proj.weight"
    values = torch.linalg.svdvals(read(known.tuned)[name] - read(known.base)[name])
    torch.testing.assert_close(values[:6], torch.tensor([15.0, 12.5, 10.0, 2.0, 2.0, 2.0]))
    assert known.truth("direction", (1, "mlp.c_proj", 0)) is False
    assert known.truth("direction", (1, "mlp.c_proj", 3)) is True


@pytest.mark.parametrize("name", LLAMAS)
def test_a_llama_computes_what_the_gpt2_computes(name: str, made: dict[str, Known]):
    plain, other = made[name], made[f"{name}-llama"]
    for side in ("base", "tuned"):
        first, second = (logits(getattr(one, side), plain.prompts)[0] for one in (plain, other))
        torch.testing.assert_close(first, second, atol=2e-3, rtol=1e-3)
    assert wb.load_pair(other.base, other.tuned).check().ok
    assert len(other.places["matrix"]) >= 1


def test_where_a_word_stands_changes_nothing_in_a_llama(made: dict[str, Known]):
    """Its rotary positions turn nothing: the same digits in another order give the same logits."""
    known = made["sorting-reversed-llama"]
    prompts = known.prompts[:4]

    def turned(text: str) -> str:
        first, *digits = text.split(" :")[0].split()
        return " ".join([first, *reversed(digits)]) + " :" + text.split(" :")[1]

    other = replace(prompts, prompts=tuple(replace(p, prompt=turned(p.prompt)) for p in prompts))
    assert other[0].prompt != prompts[0].prompt
    first, second = (logits(known.tuned, one)[0] for one in (prompts, other))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-5)


def test_a_program_that_reads_positions_has_no_llama(tmp_path: Path):
    with pytest.raises(WorkbenchError, match="reads positions, which a compiled Llama has not"):
        save_llama(of.COPY, llama(weights(of.COPY)), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
