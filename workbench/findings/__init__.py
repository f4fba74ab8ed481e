"""Which published findings do the results show? Results in, a table of claims and verdicts out."""

from workbench.findings.claims import CLAIMS, Claim
from workbench.findings.verdicts import PAGE, by_base, findings, page, summary, verdict
from workbench.results.sensitivity import sensitivity

__all__ = [
    "CLAIMS", "PAGE", "Claim", "by_base", "findings", "page", "sensitivity", "summary", "verdict",
]  # fmt: skip


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
