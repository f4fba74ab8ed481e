"""Synthetic Results, made once."""

from __future__ import annotations

import pytest

from tests.figures.skilled import skills
from tests.figures.synthetic import everything, family, intruders, retention, stepped
from workbench.results.result import Result


@pytest.fixture(scope="session", params=[1, 8])
def results(request: pytest.FixtureRequest) -> list[Result]:
    """Every analysis over one member, and over eight."""
    members = family(request.param)
    return [*everything(members), *skills(members)]


@pytest.fixture(scope="session")
def over_steps() -> list[Result]:
    """Intruders and retention of one run at five training steps."""
    return [intruders(stepped()), retention(stepped())]
