"""What torch cannot decompose in float32, float64 does."""

from __future__ import annotations

import pytest
import torch
from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

from workbench.numerics import singular_values, svd


@pytest.fixture(params=["converges", "gives up on float32"])
def lapack(request, monkeypatch):
    """torch's own, and as it is on some matrices of equal values, which depend on the machine."""
    if request.param == "converges":
        return

    def failing(own):
        def decompose(matrix, **how):
            if matrix.dtype == torch.float32:
                raise LinAlgError("linalg.svd: The algorithm failed to converge")
            return own(matrix, **how)

        return decompose

    monkeypatch.setattr(torch.linalg, "svd", failing(torch.linalg.svd))
    monkeypatch.setattr(torch.linalg, "svdvals", failing(torch.linalg.svdvals))


def test_a_decomposition_by_hand(lapack):
    """[[3, 0], [0, -2], [0, 0]]: values 3 and 2 along the axes."""
    matrix = torch.tensor([[3.0, 0], [0, -2], [0, 0]])
    left, values, right = svd(matrix)
    assert values.tolist() == singular_values(matrix).tolist() == [3, 2]
    assert {left.dtype, values.dtype, right.dtype} == {torch.float32}
    assert left.shape == (3, 2)
    assert right.shape == (2, 2)
    assert left.abs().tolist() == [[1, 0], [0, 1], [0, 0]]
    torch.testing.assert_close((left * values) @ right, matrix)


def test_what_is_no_decomposition_is_still_said():
    with pytest.raises(LinAlgError):
        svd(torch.full((2, 2), torch.nan))
