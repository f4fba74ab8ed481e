"""A sparse autoencoder that others trained, read from SAELens' folder.

The folder holds `cfg.json` and `sae_weights.safetensors`. With x a state, (tokens, d_in):

    latents   z = f((x - b_dec) W_enc + b_enc)      without - b_dec where the cfg says so
    x^        = z W_dec + b_dec                     the error is x - x^

f is a ReLU (Bricken et al. 2023, "Towards Monosemanticity"), a JumpReLU, zero up to a threshold of
each latent (Rajamanoharan et al. 2024, arXiv 2407.14435), or what is positive of the k largest (Gao
et al. 2024, arXiv 2406.04093). States may be centred and scaled before, and scaled back after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, read_json
from workbench.loaders.headers import safetensors_header
from workbench.models import Layout, Site
from workbench.models.layout import LENS

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("standard", "jumprelu", "topk")
SCALINGS = ("none", "layer_norm", "constant_norm_rescale")
STREAMS = ("resid_pre", "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "resid_post")
FORMER = {  # SAELens before 6.0 -> since
    "hook_point": "hook_name", "activation_fn_str": "activation_fn",
    "hook_point_head_index": "hook_head_index",
}  # fmt: skip
EPSILON = 1e-5  # SAELens', beside a standard deviation


class Read(NamedTuple):
    """latents: (tokens, d_sae). rebuilt: (tokens, d_in), what they say the state is."""

    latents: Tensor
    rebuilt: Tensor


@dataclass(frozen=True)
class SAE:
    """weights: W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc and threshold (d_sae,), b_dec
    (d_in,), all float32. site: where its states are from. model: of which one, if it says so."""

    name: str
    site: Site
    weights: Mapping[str, Tensor]
    architecture: str = "standard"
    k: int = 0
    centred: bool = True
    scaling: str = "none"
    by_norm: bool = False
    model: str = ""

    @property
    def width(self) -> int:
        return self.weights["W_dec"].shape[1]

    @property
    def sizes(self) -> Tensor:
        """(d_sae,) by how much the state moves for each unit of a latent: its row's norm."""
        norms = self.weights["W_dec"].norm(dim=1)
        return torch.ones_like(norms) if self.by_norm else norms

    def to(self, device: str) -> SAE:
        """The same on a device."""
        moved = {name: own.to(device) for name, own in self.weights.items()}
        return replace(self, weights=moved)

    def read(self, states: Tensor) -> Read:
        """Latents and reconstruction of states (tokens, d_in), in float32."""
        own, (shift, before, after) = self.weights, self._scaled(states.float())
        scaled = (states.float() - shift) * before
        inside = (scaled - own["b_dec"] if self.centred else scaled) @ own["W_enc"] + own["b_enc"]
        norms = own["W_dec"].norm(dim=1) if self.by_norm else None
        latents = self._active(inside if norms is None else inside * norms)
        made = (latents if norms is None else latents / norms) @ own["W_dec"] + own["b_dec"]
        return Read(latents, made * after + shift)

    def require(self, layout: Layout) -> None:
        """Raises WorkbenchError where the model has no such site, or one of another width."""
        layout.check(self.site)
        neurons = self.site.kind == "mlp_hidden"
        width = layout.count(self.site) if neurons else layout.width
        if width != self.width:
            raise WorkbenchError(
                f"The dictionary {self.name!r} reads {self.width} numbers, but the model's "
                f"{self.site} has {width}; give a dictionary of a model of this width, or its site."
            )

    @classmethod
    def load(cls, folder: str | Path, site: str | None = None) -> SAE:
        """What SAELens saved in a folder. site: as "4.resid_post", where the cfg's hook is not
        meant. Raises WorkbenchError for any other folder and for kinds that are not read here."""
        path = Path(folder)
        if not path.is_dir():
            raise WorkbenchError(
                f"Expected a folder with {CFG} and {WEIGHTS} as SAELens saves them at {path}, "
                "found none; download the dictionary first."
            )
        cfg = _today(read_json(path / CFG))
        kind = cfg.get("architecture", "standard")
        _require_known("architecture", kind, ARCHITECTURES)
        scaling = cfg.get("normalize_activations") or "none"
        _require_known("normalize_activations", scaling, SCALINGS)
        how = cfg.get("model_from_pretrained_kwargs") or {}
        if isinstance(how, dict) and how.get("center_writing_weights"):
            raise WorkbenchError(
                f"The dictionary in {path} was trained on a stream whose mean was taken out "
                "(center_writing_weights), which the models here have not; give one of the plain "
                "stream."
            )
        k = cfg.get("k", 0)
        if kind == "topk" and not is_count(k):
            raise WorkbenchError(f"Expected k of a topk dictionary to be a count, found {k!r}.")
        return cls(
            name=path.resolve().name,
            site=_site(cfg) if site is None else Site.parse(site),
            weights=_weights(path / WEIGHTS, kind),
            architecture=kind,
            k=k if kind == "topk" else 0,
            centred=bool(cfg.get("apply_b_dec_to_input", True)),
            scaling=scaling,
            by_norm=kind == "topk" and bool(cfg.get("rescale_acts_by_decoder_norm")),
            model=str(cfg.get("model_name") or ""),
        )

    def _active(self, inside: Tensor) -> Tensor:
        if self.architecture == "jumprelu":
            return inside.relu() * (inside > self.weights["threshold"])
        if self.architecture == "topk":
            best = inside.topk(min(self.k, inside.shape[-1]), dim=-1)
            return torch.zeros_like(inside).scatter(-1, best.indices, best.values.relu())
        return inside.relu()

    def _scaled(self, states: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """What is taken off the states, by what they are multiplied then, and by what the
        reconstruction is."""
        if self.scaling == "layer_norm":
            mean, deviation = states.mean(-1, keepdim=True), states.std(-1, keepdim=True)
            return mean, 1 / (deviation + EPSILON), deviation
        if self.scaling == "constant_norm_rescale":
            norm = states.norm(dim=-1, keepdim=True) / states.shape[-1] ** 0.5
            return 0.0, 1 / norm, norm
        return 0.0, 1.0, 1.0


def _today(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A cfg as SAELens has written it since 6.0, with its metadata beside the rest."""
    found = {FORMER.get(name, name): own for name, own in cfg.items()}
    about = found.pop("metadata", None)
    found |= about if isinstance(about, dict) else {}
    more = found.get("activation_fn_kwargs")
    if found.get("activation_fn") == "topk" and isinstance(more, dict):
        found |= {"architecture": "topk", "k": more.get("k")}
    elif found.get("activation_fn", "relu") not in ("relu", "topk"):
        _require_known("activation_fn", found["activation_fn"], ("relu", "topk"))
    return found


def _require_known(name: str, found: Any, known: tuple[str, ...]) -> None:
    if found not in known:
        raise WorkbenchError(
            f"Expected a dictionary whose {name} is {', '.join(known)}, found {found!r}; give "
            "another one, or save it as one of these with SAELens."
        )


def _site(cfg: Mapping[str, Any]) -> Site:
    hook = cfg.get("hook_name")
    kinds = {own: kind for kind, own in LENS.items() if kind in STREAMS}
    found = re.fullmatch(r"blocks\.(\d{1,6})\.(.+)", str(hook))
    if not found or found[2] not in kinds or cfg.get("hook_head_index") is not None:
        raise WorkbenchError(
            f"Expected a dictionary of the residual stream or of what a sublayer adds to it "
            f"({', '.join(kinds)}), found hook_name {hook!r}; name its place with site, as "
            '"4.resid_post".'
        )
    kind: Any = kinds[found[2]]
    return Site(kind, int(found[1]))


def _weights(path: Path, architecture: str) -> dict[str, Tensor]:
    """The tensors, whose shapes must be of one dictionary."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WorkbenchError(f"Expected {WEIGHTS} beside {CFG} in {path.parent}, found none.")
    shapes = {name: stored.shape for name, stored in safetensors_header(path).items()}
    names = ["W_enc", "W_dec", "b_enc", "b_dec"] + ["threshold"] * (architecture == "jumprelu")
    size, width = (*shapes.get("W_dec", ()), 0, 0)[:2]
    wanted = {
        "W_enc": (width, size), "W_dec": (size, width), "b_enc": (size,), "b_dec": (width,),
        "threshold": (size,),
    }  # fmt: skip
    for name in names:
        if shapes.get(name) != wanted[name] or not size or not width:
            raise WorkbenchError(
                f"Expected {name} of shape {wanted[name]} in {path}, found {shapes.get(name)}; "
                "give a dictionary that SAELens saved."
            )
    others = sorted({*shapes} - {*names})
    if others:
        raise WorkbenchError(
            f"Expected {', '.join(names)} in {path}, found {others[0]} besides, which would change "
            f"what a {architecture} dictionary says; save it with SAELens 6 or later."
        )
    try:
        found = {name: own.float() for name, own in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise WorkbenchError(f"{path} cannot be read ({error}); download it again.") from error
    wrong = [name for name, own in found.items() if not bool(own.isfinite().all())]
    if wrong:
        raise WorkbenchError(f"{wrong[0]} in {path} has numbers that are not finite.")
    return found
