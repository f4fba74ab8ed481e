"""TuCo: what fine-tuning contributes to one response, and what scaling that contribution does."""

from workbench.tuco.contribution import contribution
from workbench.tuco.scaling import scaled, scaling

__all__ = ["contribution", "scaled", "scaling"]
