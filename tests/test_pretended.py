"""No analysis leaves a tensor on the wrong device, as far as a pretended one can tell.

The others: python -m tests.pretended, a few minutes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pretended = pytest.importorskip("torch.utils.backend_registration")
pytestmark = pytest.mark.skipif(
    not hasattr(pretended, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices made in Python",
)
ROOT = Path(__file__).parents[1]
KEYS = ("spectral.similarity", "tuco.contribution", "patching.restore")

SMALL = """
import torch
from tests.pretended import NAME, Pretence, install
install()
with Pretence():
    there, here = torch.arange(3.0, device=NAME), torch.ones(3)
    assert (there + 1).sum().item() == 6 and (there.cpu() + here).tolist() == [1, 2, 3]
    for wrong in (lambda: there + here, lambda: there.numpy(), lambda: here[there.long()],
                  lambda: torch.rand(3, device=NAME, generator=torch.Generator())):
        try:
            wrong()
        except (RuntimeError, TypeError) as error:
            print(error)
        else:
            raise SystemExit("a wrong device was not seen")
"""

# Matrices large enough that no decomposition of the whole is taken.
BOUNDS = """
import sys, torch
from tests.pretended import NAME, Pretence, install
install()
from benchmarks.spectral import changed, trained_like
from workbench.loaders.adapters import Factors
from workbench.spectral.intruders import certified
from workbench.spectral.linalg import Operator
bounds = sys.modules["workbench.spectral.decisions"]
bounds.DOUBLE = (NAME,)
stored = trained_like(640, 560, 0)
own = changed(stored, "lora-r8", 5, "cpu")
values, wanted = certified(own, stored, 10, 0.5, "left")
with Pretence():
    there = Factors(own.factors.up.to(NAME), own.factors.down.to(NAME))
    moved = Operator(own.dense.to(NAME), there)
    again, found = certified(moved, stored.to(NAME), 10, 0.5, "left")
torch.testing.assert_close(again, values)
assert bool((found.decided(0.5) == wanted.decided(0.5)).all())
torch.testing.assert_close(found.high, wanted.high, atol=1e-3, rtol=1e-3)
"""


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_sees_what_is_wrong():
    assert len(run("-c", SMALL).splitlines()) == 4


def test_analyses_are_as_on_the_cpu():
    assert run("-m", "tests.pretended", *KEYS).count("as on the CPU") == len(KEYS)


def test_bounds_of_decisions_are_as_on_the_cpu():
    run("-c", BOUNDS)
