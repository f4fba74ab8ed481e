"""A plugin of pytest, under `coverage run`: every line is told with the test that ran it, and each
test's seconds in the file that SECONDS names. Used by `tests.mutants`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

TIMES: dict[str, float] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any, nextitem: Any) -> Iterator[None]:
    running = Coverage.current()
    assert running is not None
    running.switch_context(item.nodeid)
    begun = time.perf_counter()
    try:
        return (yield)
    finally:
        TIMES[item.nodeid] = time.perf_counter() - begun
        running.switch_context("")


def pytest_sessionfinish() -> None:
    Path(os.environ["SECONDS"]).write_text(json.dumps(TIMES))
