"""A norm at the scale it has in one run is linear, so what it is given can be taken apart.

Layer norms and root mean square norms divide by one number for each token. With that number held,
every summand of what the norm is given has its own part in what it gives (Elhage et al. 2021, "A
mathematical framework for transformer circuits"): the final norm of `contributions`, and the norm
that stands behind attention in some models (OLMo 2, Gemma 2 and 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError

CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the stream's norm, at most


class Linear(NamedTuple):
    """A norm at the scale it has in one run: out = scale * gain * (x - its mean, if centred) +
    bias. gain, bias: (width,); scale: (batch,)."""

    gain: Tensor
    scale: Tensor
    centred: bool
    bias: Tensor

    def part(self, summand: Tensor) -> Tensor:
        """What a summand (n, batch, width) of what it is given becomes; without the bias, the parts
        of a whole add up to what it gives."""
        own = summand - summand.mean(-1, keepdim=True) if self.centred else summand
        return self.scale[:, None] * self.gain * own

    def back(self, direction: Tensor) -> Tensor:
        """The direction (batch, width) of what it gives as one of what it is given."""
        own = self.scale[:, None] * self.gain * direction
        return own - own.mean(-1, keepdim=True) if self.centred else own


def frozen(norm: Any, given: Tensor, made: Tensor) -> Linear:
    """A norm with its scale frozen, by its own numbers alone, whether it is a layer norm or
    a root mean square one, with a gain or 1 + gain. norm: the module; given, made: (batch, width).
    Raises WorkbenchError where it is neither."""
    width = given.shape[-1]
    probe = torch.ones(width, dtype=given.dtype, device=given.device)
    probe[1::2] = -1
    if width % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0]).to(probe)
    with torch.no_grad():
        zero, one, moved = norm(torch.stack([0 * probe, probe, probe + 1]))
    bias, given, made = zero.float(), given.float(), made.float()
    gain = (one.float() - bias) / probe.float()
    centred = bool(torch.allclose(moved.float(), one.float(), rtol=1e-3, atol=1e-4))
    own = gain * (given - given.mean(-1, keepdim=True) if centred else given)
    least = torch.finfo(own.dtype).tiny  # of nothing the norm makes its bias
    scale = ((made - bias) * own).sum(-1) / own.square().sum(-1).clamp_min(least)
    apart = (scale[:, None] * own + bias - made).norm(dim=-1)
    off = apart / made.norm(dim=-1).clamp_min(least)
    if float(off.max()) > CLOSE.get(norm_dtype(norm, given), 1e-3):
        raise WorkbenchError(
            f"Expected a norm that is linear at a fixed scale, found {type(norm).__name__}, "
            f"which is {float(off.max()):.1%} off; use patching.activation on this model."
        )
    return Linear(gain, scale, centred, bias)


def norm_dtype(norm: Any, given: Tensor) -> torch.dtype:
    """The precision in which a norm's weights are."""
    return next((p.dtype for p in norm.parameters()), given.dtype)


def parts_behind(norm: Any, parts: Tensor) -> Tensor:
    """What each of these parts becomes behind the norm of their sum, (n, batch, token, width) both;
    they add up to what the norm gives less its bias. Raises WorkbenchError as `frozen`."""
    flat = parts.float().flatten(1, 2)
    given = flat.sum(0).to(norm_dtype(norm, flat))
    with torch.no_grad():
        made = norm(given)
    return frozen(norm, given, made).part(flat).view_as(parts)
