"""Spectral analyses: of the weights alone, but for `explained`, `directions` and
`scale_intruders`, which run the model."""

from workbench.spectral.delta_spectrum import delta_spectrum
from workbench.spectral.directions import directions
from workbench.spectral.explained import explained
from workbench.spectral.intruders import intruders
from workbench.spectral.scale import scale_intruders
from workbench.spectral.similarity import similarity
from workbench.spectral.subspaces import subspaces

# In the order in which a report tells them.
ANALYSES = (
    intruders,
    delta_spectrum,
    similarity,
    explained,
    subspaces,
    directions,
    scale_intruders,
)

__all__ = [
    "delta_spectrum",
    "directions",
    "explained",
    "intruders",
    "scale_intruders",
    "similarity",
    "subspaces",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
