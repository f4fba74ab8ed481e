"""Arrays in files without a name: the same numbers, and nothing that stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.files import large


def in_a_file(array: np.ndarray) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base  # pyright: ignore[reportAssignmentType]
    return array is not None


def test_beyond_a_size_an_array_lies_in_a_file(monkeypatch):
    small = large.unknown((3, 5))
    monkeypatch.setattr(large, "LARGE", 100)
    monkeypatch.setattr(large, "ROOM", 4)
    made = large.unknown((3, 5))
    assert in_a_file(made)
    assert not in_a_file(small)
    assert made.shape == (3, 5)
    assert made.dtype == np.float64
    assert np.isnan(made).all()
    made[1] = range(5)
    assert made[1].tolist() == [0, 1, 2, 3, 4]
    assert np.isnan(made[[0, 2]]).all()


def test_differences_and_copies_are_numpys_own(monkeypatch):
    draw = np.random.default_rng(0)
    values, zero = draw.normal(size=(2500, 7)), draw.normal(size=7)
    for size in (large.LARGE, 10):
        monkeypatch.setattr(large, "LARGE", size)
        monkeypatch.setattr(large, "ROOM", 100)
        assert [*large.parts(values)] == [slice(0, 1000), slice(1000, 2000), slice(2000, 3000)]
        for one, other in ((values, zero), (zero, values)):
            assert np.array_equal(large.less(one, other), one - other)
        found = large.converted(values, np.float32)
        assert found.dtype == np.float32
        assert np.array_equal(found, values.astype(np.float32))
    assert in_a_file(found)


INTERRUPTED = """
import os, signal, sys
import numpy as np
from workbench.files import large
large.LARGE = 0
made = large.unknown((100, 100))
made[:] = 1
print(len(os.listdir(sys.argv[1])), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_run_that_is_killed_leaves_no_file(tmp_path: Path):
    known = os.environ | {"TMPDIR": str(tmp_path)}
    made = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        env=known,
        capture_output=True,
        text=True,
    )
    assert made.returncode == -signal.SIGKILL
    assert made.stdout == "0\n", made.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_folder_without_room_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(WorkbenchError, match=r"GiB of room in .*let TMPDIR name"):
        large.unknown((2, 2))
