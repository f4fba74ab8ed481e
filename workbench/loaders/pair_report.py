"""What a preflight found of a pair, a line for every question."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from workbench.conveniences import convenience
from workbench.errors import WorkbenchError

STOP, WARN, NOTE, OK = "stop", "warn", "note", "ok"
Line = tuple[str, str, str, str]  # item, status, found, remedy


@dataclass(frozen=True)
class PairReport:
    """table: item, status (ok, note, warn, stop), found, remedy - one line per question asked.
    changes: per parameter layer, component, norm of the change and relative norm (read=True)."""

    table: pd.DataFrame
    changes: pd.DataFrame | None = None

    @property
    def ok(self) -> bool:
        return not (self.table["status"] == STOP).any()

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not stop an analysis but belongs beside its numbers."""
        rows = self.table[self.table["status"].isin([WARN, NOTE])]
        return tuple(f"{row.item}: {row.found}. {row.remedy}".strip() for row in rows.itertuples())

    def require(self) -> None:
        """Raise WorkbenchError with the first line that makes an analysis meaningless."""
        for row in self.table[self.table["status"] == STOP].itertuples():
            raise WorkbenchError(f"{row.item}: {row.found}. {row.remedy}")

    def _repr_html_(self) -> str:
        return convenience("PairReport._repr_html_")(self)
