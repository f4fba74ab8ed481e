"""Synthetic Results of lens, patterns and attribution with a known truth."""

from __future__ import annotations

import numpy as np

from tests.figures.synthetic import result
from workbench.figures.patching.lens import CHANGE
from workbench.results.result import Result

LAYERS, HEADS = 4, 3

TOKENS = ["<bos>", "Box", "$K", "holds", "the", "cup", ".", "Box", "$K", "contains", "the"]


def mean(value: float, width: float = 0.1) -> dict:
    return {"value": value, "low": value - width, "high": value + width, "n": 32, "baseline": 0.0}


def lens(members: dict) -> Result:
    """The answer rises with the layer; tuned is ahead by a nat behind layer 1."""
    rows = []
    for member in members:
        for layer in range(-1, LAYERS):
            about = {"member": member, "layer": layer}
            ahead = float(layer > 1)
            for side, value in (("base", layer - 5.0), ("tuned", layer - 5.0 + ahead)):
                rows.append(about | {"side": side, "metric": "log_probability"} | mean(value))
            rows.append(about | {"side": CHANGE, "metric": "kl"} | mean(ahead))
    return result("patching.lens", rows, members)


def das(members: dict) -> Result:
    """Found in both models, and of no use in the other behind layer 3."""
    rows = []
    for member in members:
        for layer in (1, 3):
            for side in ("base", "tuned", "base->tuned", "tuned->base"):
                value = 0.2 if "->" in side and layer == 3 else 0.9
                about = {"member": member, "layer": layer, "side": side, "metric": "score"}
                for arm, own in (("learned", value), ("shuffled", 0.1), ("all", 0.95)):
                    rows.append(about | {"arm": arm} | mean(own) | {"baseline": 0.05})
            taught = {"member": member, "layer": layer, "side": "base", "arm": "learned"}
            rows.append(taught | {"metric": "training_score", "value": layer / 4, "n": 32})
            null = {"baseline": 0.12, "null_low": 0.09, "null_high": 0.16, "n": 8}
            about = {"member": member, "layer": layer, "arm": "learned", "metric": "overlap"}
            rows.append(about | null | {"side": "base and tuned", "value": 0.3})
            rows.append(about | null | {"side": "base, twice", "value": 0.4})
    return result("patching.das", rows, members)


def difference(members: dict) -> Result:
    """A constant part from layer 2 on, which says coins and step; random directions say nothing."""
    rows = []
    for member in members:
        own = {"member": member, "arm": "difference"}
        for layer in range(LAYERS):
            at, there = own | {"layer": layer}, float(layer > 1)
            null = {"baseline": 0.0, "null_low": -0.05, "null_high": 0.05}
            rows.append(at | {"metric": "constant"} | mean(0.1 + 0.3 * there) | null)
            rows.append(at | {"metric": "norm", "value": 1 + there, "n": 32, "baseline": 9.0})
            share = {"metric": "found", "side": "lens"}
            rows.append(at | share | mean(0.5 * there) | {"n": 16, "baseline": 0.05})
            for place, token in enumerate(["coins", "step", "lines", "night"], 1):
                said = {"metric": "up", "side": "lens", "x": float(place), "token": token}
                rows.append(at | said | {"value": 9.0 / place, "baseline": 4.0})
        for place, word in enumerate(["step", "coins", "removed"]):
            told = {"metric": "word", "x": float(place), "word": word, "value": 9.0 - place}
            rows.append({"member": member, "arm": "contrast", "layer": 2} | told)
        rows.append(own | {"layer": 2, "metric": "new_words"} | mean(0.4))
    return result("patching.difference", rows, members)


def drift(members: dict) -> Result:
    """The states drift from layer 2 on, to half of what other prompts are apart."""
    rows = []
    for member in members:
        for layer in range(-1, LAYERS):
            about = {"member": member, "layer": layer, "side": CHANGE}
            far = 5.0 * (layer > 1)
            null = {"baseline": 10.0, "null_low": 9.0, "null_high": 11.0}
            rows.append(about | {"metric": "frechet", "value": far, "n": 32} | null)
            rows.append(about | {"metric": "cka", "value": 0.9, "n": 32, "baseline": 0.5})
            rows.append(about | {"metric": "cosine"} | mean(0.8) | {"baseline": 0.3})
            for side, value in (("base", -1.0), ("tuned", -0.5)):
                for metric in ("uniformity", "alignment"):
                    rows.append(about | {"side": side, "metric": metric} | mean(abs(value)))
    return result("patching.drift", rows, members)


def steer(members: dict) -> Result:
    """Layer 2 steers with scale 1, all other layers and the random directions do nothing."""
    rows = []
    for member in members:
        own = {"member": member}
        rows.append(own | {"arm": "base", "metric": "log_probability"} | mean(-4.0))
        rows.append(own | {"arm": "tuned", "metric": "log_probability"} | mean(-1.0))
        for layer in range(LAYERS):
            for scale in (0.0, 1.0, 2.0):
                at = own | {"layer": layer, "x": scale, "metric": "log_probability"}
                gain = 3.0 * (layer == 2) * (1 - abs(scale - 1))
                rows.append(at | {"arm": "steered"} | mean(gain - 4.0))
                rows.append(at | {"arm": "random"} | mean(-4.0))
            at = own | {"layer": layer, "metric": "log_probability"}
            rows.append(at | {"arm": "ablated"} | mean(-1.0 - 3.0 * (layer == 2)))
            rows.append(at | {"arm": "ablated random"} | mean(-1.0))
        at = own | {"arm": "best", "layer": 2, "x": 1.0}
        rows.append(at | {"metric": "log_probability"} | mean(-1.0) | {"baseline": -4.0})
        rows.append(at | {"metric": "beyond_random:log_probability"} | mean(3.0))
    return result("patching.steer", rows, members)


def contributions(members: dict) -> Result:
    """Head 1 of layer 2 adds two logits more in the tuned model; every MLP a little."""
    rows = []
    for member in members:
        places = [("embedding", None, None, 0.2), ("bias", None, None, 0.1)]
        for layer in range(LAYERS):
            places += [("mlp_out", layer, None, 0.1 * layer), ("attn_out", layer, None, 0.0)]
            places += [("head", layer, head, 0.5) for head in range(HEADS)]
        for component, layer, head, base in places:
            gain = 2.0 * ((layer, head) == (2, 1)) + 0.05 * (component == "mlp_out")
            about = {"member": member, "component": component, "layer": layer, "head": head,
                     "metric": "contribution"}  # fmt: skip
            for side, value in (("base", base), ("tuned", base + gain), (CHANGE, gain)):
                rows.append(about | {"side": side} | mean(value))
        about = {"member": member, "side": CHANGE, "metric": "contribution"}
        rows.append(about | {"component": "total"} | mean(2.2))
        place = {"component": "head", "layer": 2, "head": 1, "arm": "picked"}
        rows.append(about | place | mean(2.0))
    return result("patching.contributions", rows, members)


def knockout(members: dict) -> Result:
    """The tuned model needs head 1 of layer 2, and so that layer, three nats more than the base."""
    rows = []
    for member in members:
        places = [("layer", layer, None, -1.0) for layer in range(LAYERS)]
        places += [("mlp", layer, None, -0.2) for layer in range(LAYERS)]
        places += [("head", i // HEADS, i % HEADS, -0.1) for i in range(LAYERS * HEADS)]
        places += [("neuron", 1, neuron, -0.3) for neuron in range(3)]
        about = {"member": member, "arm": "mean"}
        for component, layer, number, base in places:
            more = -3.0 * (layer == 2 and component != "mlp" and number in (None, 1))
            more -= 2.0 * ((component, number) == ("neuron", 2))
            place = {"component": component, "layer": layer, "head": None, "neuron": None}
            place |= {component: number} if number is not None else {}
            for side, value in (("base", base), ("tuned", base + more), (CHANGE, more)):
                own = about | place | {"side": side, "metric": "log_probability"}
                rows.append(own | mean(value) | {"baseline": base})
        for component, head in (("head", 1), ("layer", None)):
            place = {"component": component, "layer": 2, "head": head, "side": CHANGE}
            rows.append(about | place | {"metric": "picked"} | mean(-3.0))
    return result("patching.knockout", rows, members)


def path(members: dict) -> Result:
    """Head 1 of layer 2 supports the answer in the tuned model alone, MLP 3 in both."""
    rows = []
    for member in members:
        places = [("head", i // HEADS, i % HEADS) for i in range(LAYERS * HEADS)]
        places += [("mlp", layer, None) for layer in range(LAYERS)] + [("embedding", None, None)]
        for component, layer, head in places:
            place = {"component": component, "layer": layer, "head": head, "position": "-1"}
            for side in ("base", "tuned"):
                lost = 4.0 * ((layer, head, side) == (2, 1, "tuned"))
                lost += 1.0 * ((component, layer) == ("mlp", 3))
                own = {"member": member, "side": side, "arm": "patch"} | place
                rows.append(own | {"metric": "logit_change"} | mean(-lost))
                rows.append(own | {"metric": "effect"} | mean(-lost / 10))
        for side in ("base", "tuned"):
            random = {"member": member, "side": side, "component": "head", "position": "-1"}
            rows.append(random | {"arm": "random", "metric": "logit_change"} | mean(-0.3))
    return result("patching.path", rows, members)


def edge_circuits(members: dict) -> Result:
    """Each side's own circuit is the whole answer from 2% of the edges on, the base's in the tuned
    model from 20%; half of the small circuit's edges changed, and a fifth of its nodes."""
    rows = []
    for member in members:
        about = {"member": member}
        for share, own, other in ((0.005, 0.6, 0.1), (0.02, 1.0, 0.4), (0.2, 1.0, 0.9), (1, 1, 1)):
            at = about | {"x": share, "metric": "faithfulness"}
            for side, circuit in (("base", "base"), ("base", "tuned"), ("tuned", "tuned"),
                                  ("tuned", "base")):  # fmt: skip
                held = at | {"side": side, "circuit": circuit}
                value = own if side == circuit else other
                rows.append(held | {"arm": "patch"} | mean(value))
                rows.append(held | {"arm": "without"} | mean(1 - value))
            for side in ("base", "tuned"):
                rows.append(at | {"side": side, "arm": "random"} | mean(0.9 * share))
            for metric, value in (("edge_change", 0.5 * (1 - share)), ("node_change", 0.2)):
                change = about | {"x": share, "side": CHANGE, "metric": metric}
                value = value if share < 1 else 0.0
                rows.append(change | {"arm": "patch"} | mean(value) | {"baseline": value / 4})
                rows.append(change | {"arm": "null"} | mean(value / 4))
        for circuit, value in (("tuned", 0.97), ("base", 0.8)):
            area = about | {"side": "tuned", "circuit": circuit, "arm": "patch"}
            rows.append(area | {"metric": "cpr"} | mean(value))
            rows.append(area | {"metric": "cmd"} | mean(1 - value))
    return result("patching.edge_circuits", rows, members)


def patterns(members: dict) -> Result:
    """Head 1 of layer 2 has moved, most of all in the second prompt."""
    rows, tensors = [], {}
    for member in members:
        for layer in range(LAYERS):
            for head in range(HEADS):
                value = 0.5 if (layer, head) == (2, 1) else 0.01 * layer
                about = {"member": member, "layer": layer, "head": head, "side": CHANGE}
                rows.append(about | {"position": "last token", "metric": "tvd"} | mean(value))
                rows.append(about | {"position": "all tokens", "metric": "entropy"} | mean(-value))
        for number, change in enumerate((0.1, 0.9)):
            for x, token in enumerate(TOKENS):
                about = {"member": member, "layer": 2, "head": 1, "side": CHANGE}
                said = {"prompt": f"p{number}", "x": float(x), "token": token}
                rows.append(about | said | {"metric": "example_tvd", "value": change})
            for side, place in (("base", 2), ("tuned", 5)):
                last = np.zeros((LAYERS, HEADS, len(TOKENS)))
                last[..., place] = 1
                name = f"{number}/{side}/last"
                tensors[f"{member}/{name}" if len(members) > 1 else name] = last
    return result("patching.patterns", rows, members, tensors)


def prefix(members: dict) -> Result:
    """Layer 2's prefix takes and adds most, beyond random ones; attention changes behind it."""
    rows = []
    for member in members:
        for layer in range(LAYERS):
            for head in (*range(HEADS), np.nan):
                about = {"member": member, "layer": layer, "head": head}
                most = 0.3 * (layer == 2)
                for metric, value in (
                    ("prefix_mass", 0.2),
                    ("bias_share", 0.3),
                    ("bias_direction", 0.6),
                ):
                    null = {"baseline": 0.15, "null_low": 0.1, "null_high": 0.2}
                    own = about | {"side": "tuned", "metric": metric}
                    rows.append(own | mean(value + most, 0.02) | null)
                for side, value in (
                    ("with - without prefix", 1e-7), (CHANGE, 1e-7 if not layer else 0.2),
                ):  # fmt: skip
                    told = {"value": value, "n": 32, "baseline": 1e-6}
                    rows.append(about | {"side": side, "metric": "largest_content_change"} | told)
    return result("patching.prefix", rows, members)


def attribution(members: dict) -> Result:
    """Every exact effect is twice the first-order one; two positions a head."""
    rows = []
    for member in members:
        for side in ("base", "tuned", "tuned->base"):
            about = {"member": member, "side": side, "component": "z", "arm": "patch"}
            for layer in range(LAYERS):
                for head in range(HEADS):
                    for position in ("query box", "-1"):
                        place = about | {"layer": layer, "head": head, "position": position}
                        value = 0.1 * layer - 0.05 * head
                        rows.append(place | {"metric": "attribution"} | mean(value))
                        if position == "-1":
                            group = "top" if layer > 1 else "random"
                            about_exact = place | {"metric": "exact", "group": group}
                            rows.append(about_exact | mean(2 * value))
            for group, value in (("top", 0.91), ("random", 0.42)):
                rows.append(about | {"metric": "rank_correlation", "group": group} | mean(value))
            shuffled = {"layer": 3, "head": 0, "position": "-1", "group": "top", "arm": "shuffled"}
            rows.append(about | shuffled | {"metric": "attribution"} | mean(9.0))
    made = result("patching.attribution", rows, members)
    whole = dict.fromkeys(("layer", "head"), "Int64")
    table = made.table.assign(neuron=np.nan).astype(whole | {"neuron": "Int64"})
    return Result(made.analysis, table, made.provenance)


def dictionary(members: dict) -> Result:
    """Latent 7 rises by 3, 12 falls by 1, the others stay within the band; fvu rises by .1."""
    rows = []
    for member in members:
        about = {"member": member, "layer": 2, "component": "resid_post"}
        for side, value in (("base", 0.2), ("tuned", 0.3), (CHANGE, 0.1)):
            rows.append(about | {"side": side, "metric": "fvu"} | mean(value, 0.02))
            rows.append(about | {"side": side, "metric": "l0"} | mean(40 * value, 1.0))
        part = mean(0.7) | {"baseline": 0.8}
        rows.append(about | {"side": CHANGE, "metric": "change_explained"} | part)
        rows.append(
            about | {"side": CHANGE, "metric": "changed", "value": 2.0, "n": 32, "baseline": 0.0}
        )
        for latent, change in ((7, 3.0), (12, -1.0), (30, 0.3), (4, -0.2)):
            null = {"baseline": 0.1, "null_low": -0.5, "null_high": 0.5}
            for side, value in (("base", 1.0), ("tuned", 1.0 + change), (CHANGE, change)):
                own = about | {"side": side, "latent": latent, "metric": "activation"}
                rows.append(own | mean(value) | (null if side == CHANGE else {}))
        for arm, value in (("base", 1.0), ("latents", 0.3), ("error", 0.8), ("both", 0.1)):
            rows.append(about | {"arm": arm, "metric": "kl_tuned"} | mean(value))
    return result("patching.dictionary", rows, members)
