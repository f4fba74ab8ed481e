"""nnsight's remote path, as far as it goes without a server: what is refused, and that the trace,
packed and unpacked with none of our code at hand as a server does it, gives the plain run's
numbers. The network itself is not reached."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.modeling import huggingface
from nnsight.schema.request import RequestModel

import workbench as wb
from tests.conftest import adapter
from tests.models.conftest import batch, decoder, no_gradients, write_base
from tests.models.test_engines import places, shifted
from workbench.errors import WorkbenchError
from workbench.loaders import Checkpoint
from workbench.models import Layout, Site, hooks, nnsight

HUB = "org/small"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> str:
    """A hub id whose files lie in the machine's cache, and whose spelling the hub has confirmed."""
    import huggingface_hub.constants as constants

    store = tmp_path / "hub"
    write_base("llama", store / "models--org--small" / "snapshots" / "abc123")
    (store / "models--org--small" / "refs").mkdir()
    (store / "models--org--small" / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(store))
    for name in ("huggingface_hub._snapshot_download", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{name}.constants.HF_HUB_CACHE", str(store))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(store))
    monkeypatch.setitem(huggingface._ID_CACHE, HUB, HUB)
    return HUB


def sight(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nnsight.wrap(model, wb.lab.shipped.tokenizer())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_a_packed_trace_gives_the_plain_numbers(kind: str):
    """Every kind of site, read and written, whole, at a head and token, and by a function."""
    model, inputs, sites = decoder(kind), batch(), places(kind)
    layout, own = Layout(model), sight(model)
    plain = hooks.run(model, inputs, read=sites)
    found = nnsight.run(own, inputs, layout=layout, read=sites, remote="local")
    assert torch.equal(found.logits, plain.logits)
    assert list(found.captured) == list(plain.captured)
    for site in sites:
        assert torch.equal(found.captured[site], plain.captured[site]), site
    other = hooks.run(model, batch(1), read=sites).captured
    for site in (Site("z", 1, head=1, position=4), Site("resid_post", 1), Site("pattern", 1)):
        for value in (other.get(site, plain.captured.get(site)), shifted):
            written = {site: value}
            ours = hooks.run(model, inputs, write=written, read=[Site("resid_post", 2)])
            theirs = nnsight.run(
                own, inputs, layout=layout, write=written, read=[Site("resid_post", 2)],
                remote="local",
            )  # fmt: skip
            assert not torch.equal(ours.logits, plain.logits) or value is not shifted
            assert torch.equal(theirs.logits, ours.logits), site
            assert torch.equal(*(run.captured[Site("resid_post", 2)] for run in (theirs, ours)))


def test_a_hub_id_is_a_model_on_a_server(hub: str):
    """No weight is read to make it; packed and run here it is the model of the cache."""
    made = nnsight.hosted(Checkpoint.parse(hub))
    assert not made.dispatched
    assert all(p.is_meta for p in made.parameters())
    assert json.loads(made.to_model_key().partition(":")[2])["repo_id"] == HUB
    inputs, site = batch(), Site("resid_post", 1)
    layout = Layout(made._module)
    found = nnsight.run(made, inputs, layout=layout, read=[site], remote="local")
    model: Any = Checkpoint.parse(hub).load()
    model.set_attn_implementation("eager")
    plain = hooks.run(model, inputs, read=[site])
    assert torch.equal(found.captured[site], plain.captured[site])
    pair = wb.load_pair(hub, hub, "same")
    assert [one.repo_id for one in pair.to_nnsight(remote=True)] == [HUB, HUB]


def test_what_is_sent_is_that_trace(hub: str, monkeypatch):
    """The request that would go to the server, caught before the network: it names the model, and
    what it holds is run on a model of its own, whose answer comes back as the plain run's form."""
    sent: list[RequestModel] = []
    model = decoder("llama")
    server = sight(model)

    def answer(self: RemoteBackend, request: RequestModel, tracer: Any) -> Any:
        sent.append(request)
        blob = self._serialize(tracer)
        simulation = LocalSimulationBackend(server)
        hidden = simulation._hide_local_modules()
        try:
            persistent = server._remoteable_persistent_objects()
            there = RequestModel.deserialize(blob, persistent, compress=self.compress)
        finally:
            simulation._restore(hidden)
        # Run where none of the caller's variables are; what was saved is what it has then.
        there.execute(there.info.code)
        names = ("found", "logits")
        return {name: there.info.frame.f_locals[name] for name in names}

    monkeypatch.setattr(RemoteBackend, "request", answer)
    made = nnsight.hosted(Checkpoint.parse(hub))
    sites = [Site("z", 1, head=1, position=4), Site("pattern", 0)]
    write = {Site("resid_pre", 1): shifted}
    found = nnsight.run(
        made, batch(), layout=Layout(made._module), read=sites, write=write, remote=True
    )
    plain = hooks.run(model, batch(), read=sites, write=write)
    assert json.loads(sent[0].model_key.partition(":")[2])["repo_id"] == HUB
    assert sent[0].env == {"attn_implementation": "eager"}
    assert torch.equal(found.logits, plain.logits)
    assert all(torch.equal(found.captured[site], plain.captured[site]) for site in sites)
    assert not made.dispatched  # nothing was run here


def test_what_only_this_machine_has_is_refused(base: Path, tmp_path: Path):
    lora = adapter(decoder("llama"), tmp_path / "lora")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    for reference, what in (
        (Checkpoint(decoder("llama")), "a model in memory"),
        (Checkpoint(str(base)), "a file or folder of this machine"),
        (Checkpoint(str(gguf)), "a file or folder of this machine"),
        (Checkpoint(HUB, str(lora)), "an adapter"),
    ):
        with pytest.raises(WorkbenchError, match=f"is {what}, which a remote server cannot hold"):
            nnsight.hosted(reference)
    with pytest.raises(WorkbenchError, match="cannot hold"):
        wb.load_pair(base, base, "same").to_nnsight(remote=True)
    model = decoder("llama")
    with pytest.raises(WorkbenchError, match="This model is in memory"):
        nnsight.run(sight(model), batch(), layout=Layout(model), remote=True)
    with pytest.raises(WorkbenchError, match="This model is in memory"):
        nnsight.run(nnsight.wrap(model), batch(), layout=Layout(model), remote="https://a.b")


def test_a_server_that_cannot_be_reached_is_one_sentence(hub: str):
    made = nnsight.hosted(Checkpoint.parse(hub))
    with pytest.raises(WorkbenchError, match="did not run the trace"):
        nnsight.run(made, batch(), layout=Layout(made._module), remote="http://127.0.0.1:9")


__all__ = ["no_gradients"]
