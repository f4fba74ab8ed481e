"""The arrays that a Result holds next to its table, by model."""

from __future__ import annotations

import numpy as np

from workbench.results.result import Result


def by_member(result: Result) -> dict[str, dict[str, np.ndarray]]:
    """member -> name -> array, names without their member, whether there are several or one."""
    if len(result.members) == 1:
        only = result.members[0]
        return {only: {n.removeprefix(f"{only}/"): a for n, a in result.tensors.items()}}
    return {
        member: {
            name.removeprefix(f"{member}/"): array
            for name, array in result.tensors.items()
            if name.startswith(f"{member}/")
        }
        for member in result.members
    }
