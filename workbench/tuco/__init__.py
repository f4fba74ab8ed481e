"""TuCo: what fine-tuning contributes to one response, and what scaling that contribution does."""

from workbench.tuco.contribution import contribution
from workbench.tuco.scaling import scaled, scaling

# In the order in which a report tells them.
ANALYSES = (contribution, scaling)

__all__ = ["contribution", "scaled", "scaling"]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
