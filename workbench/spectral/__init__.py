"""Spectral analyses: of the weights alone, but for `scale_intruders`, which runs the model."""

from workbench.spectral.delta_spectrum import delta_spectrum
from workbench.spectral.intruders import intruders
from workbench.spectral.scale import scale_intruders
from workbench.spectral.similarity import similarity

# In the order in which a report tells them.
ANALYSES = (intruders, delta_spectrum, similarity, scale_intruders)

__all__ = ["delta_spectrum", "intruders", "scale_intruders", "similarity"]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
