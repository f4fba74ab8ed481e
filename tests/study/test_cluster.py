"""Wherever units run they give the same files, and a worker that dies costs nothing but time.

On Ray the whole study and a lost node stand for all of it; `make cluster-test` runs every test
there too, as CLUSTER=whole does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from threadpoolctl import threadpool_limits

import workbench as wb
from tests.conftest import adapter
from tests.forgetting.conftest import knower, nouns, overruled, wrapped
from tests.skills.conftest import write
from tests.study import clustered
from tests.terminal import workbench
from workbench.study import cluster
from workbench.study.cluster import pool, worker
from workbench.study.cluster import ray as workers_of_ray
from workbench.study.compare import results
from workbench.study.study import Chain, Study
from workbench.study.units import Unit
from workbench.tasks import PromptSet

MEMBERS = ("wrapped", "overruled", "lora")
WHOLE = os.environ.get("CLUSTER") == "whole"
PLACES = ["local:2", *(["ray"] if WHOLE else [])]
MEMORY = {"object_store_memory": 100 << 20}
# No word about this run leaves the machine.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv(worker.THREADS, "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A Ray cluster of two nodes with a processor each."""
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False} | MEMORY
    )
    made.add_node(num_cpus=1, **MEMORY)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("family")
    with torch.no_grad():
        for name, build in {"base": knower, "wrapped": wrapped, "overruled": overruled}.items():
            write(build(), made / name)
        adapter(knower(), made / "lora")
    return made


@pytest.fixture
def family(folder: Path) -> wb.Family:
    return wb.load_family(folder / "base", {n: folder / n for n in MEMBERS})


def on(where: str, request) -> str:
    return f"ray:{request.getfixturevalue('nodes').address}" if where == "ray" else where


def filled(
    place: str, store: Path, family: wb.Family, analysis: Any, **parameters: Any
) -> dict[str, bytes]:
    """The content of every file under `store` after these units were run; raises what one did."""
    made = [Unit(pair, analysis, parameters) for pair in family]
    with cluster.workers(place) as hired:
        for reason in hired.fill(store, made).values():
            raise reason
    return contents(store)


def contents(folder: Path) -> dict[str, bytes]:
    """path -> bytes below a folder; of a result.json without its time."""
    found = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = file.read_bytes()
        if file.name == "result.json":
            content = json.dumps(json.loads(content) | {"created": ""}).encode()
        found[str(file.relative_to(folder))] = content
    return found


def calls_of(calls: Path) -> Counter[str]:
    """How often each member was called."""
    return Counter(file.name.split(".")[0] for file in calls.glob("*.*"))


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


def study(folder: Path) -> Study:
    """Weights, runs of the model, learned masks, what depends on other results, steps, chains."""
    family = wb.load_family(folder / "base", {n: folder / n for n in MEMBERS})
    stages = wb.load_family(folder / "base", {n: folder / n for n in ("overruled", "wrapped")})
    lost, gained = nouns(0, 40), nouns(0, 24, swapped=True)

    def grafts(member: str, task: PromptSet) -> Study:
        return Study(
            wb.load_family(folder / "base", {member: folder / member}),
            task=task,
            only=("skills.localize",),
            options={"skills.localize": {"sparsity": (1e-4, 0.3), "random": 1, "epochs": 2}},
        )

    return Study(
        family,
        task=lost,
        prompts=[gained],
        texts=[prompt.prompt + prompt.target for prompt in lost.prompts[:8]],
        learned=gained,
        steps=stages,
        chains={"chain": Chain(stages, {"overruled": lost, "wrapped": gained})},
        only=(
            "spectral.intruders", "spectral.similarity", "forgetting.retention",
            "forgetting.probe", "forgetting.verdict", "tuco.contribution", "patching.restore",
        ),
        also={
            "swapped": grafts("wrapped", gained),
            "half": grafts("overruled", PromptSet("half", gained.prompts[::2])),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory) -> dict[str, bytes]:
    """The study's files as this process makes them."""
    out = tmp_path_factory.mktemp("here")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        results(study(folder), out)
    torch.set_num_threads(before)
    return contents(out)


@pytest.mark.parametrize("where", PLACES)
def test_every_place_gives_the_same_files(where: str, folder, plain, tmp_path, request):
    results(study(folder), tmp_path, on=on(where, request))
    found = contents(tmp_path)
    assert found.keys() == plain.keys()
    assert [name for name in plain if found[name] != plain[name]] == []
    names = {name.split("/")[1] for name in plain if name.startswith("results/")}
    assert {
        "forgetting.verdict", "skills.compose.full", "forgetting.sequential",
        "spectral.intruders.steps", "skills.localize.half",
    } <= names  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_a_killed_worker_changes_nothing_but_the_time(where: str, family, calls, tmp_path, request):
    plain = filled(
        "here", tmp_path / "plain", family, clustered.killed_once, calls=calls, member=""
    )
    options = {"calls": calls, "member": "overruled"}
    found = filled(on(where, request), tmp_path / "store", family, clustered.killed_once, **options)
    assert (calls / "killed").exists()
    assert calls_of(calls) == {"wrapped": 2, "overruled": 3, "lora": 2}
    tables = [sorted(b for n, b in f.items() if n.endswith("parquet")) for f in (plain, found)]
    assert tables[0] == tables[1]
    again = filled(on(where, request), tmp_path / "store", family, clustered.killed_once, **options)
    assert again == found
    assert calls_of(calls).total() == 7


@pytest.mark.parametrize("where", PLACES)
def test_a_unit_that_kills_every_worker_is_one_sentence(
    where: str, folder, calls, tmp_path, request
):
    family = wb.load_family(folder / "base", {"lora": folder / "lora"})
    says = "3 workers ended unexpectedly at always_killed of lora"
    with pytest.raises(wb.WorkbenchError, match=says):
        filled(on(where, request), tmp_path / "store", family, clustered.always_killed, calls=calls)
    assert calls_of(calls) == {"lora": pool.TRIES}
    assert contents(tmp_path / "store") == {}


@pytest.mark.parametrize("where", ["here", *PLACES])
def test_bad_input_of_one_unit_leaves_the_others(where: str, family, calls, tmp_path, request):
    options = {"calls": calls, "member": MEMBERS[0]}
    with pytest.raises(wb.WorkbenchError, match=f"^{MEMBERS[0]} will not do"):
        filled(on(where, request), tmp_path / "store", family, clustered.refused, **options)
    assert len(list((tmp_path / "store").iterdir())) == 2
    assert calls_of(calls) == dict.fromkeys(MEMBERS[1:], 1)  # those after it, too


def test_a_lost_node_changes_nothing_but_the_time(nodes, family, calls, tmp_path):
    plain = filled("here", tmp_path / "plain", family, clustered.counted, calls=calls)
    options = {"calls": calls, "head": nodes.head_node.node_id}
    found = filled(
        f"ray:{nodes.address}", tmp_path / "store", family, clustered.node_lost_once, **options
    )
    assert (calls / "killed").exists()
    tables = [sorted(b for n, b in f.items() if n.endswith("parquet")) for f in (plain, found)]
    assert tables[0] == tables[1]


DRIVER = """
import sys
from pathlib import Path
import workbench as wb
from tests.study import clustered
from tests.study.test_cluster import MEMBERS, filled
folder, calls, store = map(Path, sys.argv[1:])
family = wb.load_family(folder / "base", {n: folder / n for n in MEMBERS})
filled("local:2", store, family, clustered.held, calls=calls, free="wrapped")
"""


def test_a_killed_run_leaves_no_worker_and_goes_on(folder, family, calls, tmp_path):
    store = tmp_path / "store"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, folder, calls, store])
    assert _soon(lambda: len(calls_of(calls)) == 3 and list(store.glob("*/result.json")))
    driver.kill()
    driver.wait()
    workers = {int(file.name.split(".")[1]) for file in calls.glob("*.*")}
    assert len(workers) == 2
    assert _soon(lambda: not any(map(psutil.pid_exists, workers)))
    before = contents(store)
    (calls / "go").touch()
    found = filled("local:2", store, family, clustered.held, calls=calls, free="wrapped")
    assert calls_of(calls) == {"wrapped": 1, "overruled": 2, "lora": 2}
    assert before.items() <= found.items()
    assert {name.split("/")[1] for name in found} == {"result.json", "table.parquet"}
    assert len(list(store.iterdir())) == 3


def _soon(true: Callable[[], Any]) -> bool:
    until = time.monotonic() + clustered.PATIENCE
    while not true() and time.monotonic() < until:
        time.sleep(0.1)
    return bool(true())


def test_a_worker_that_would_compute_something_else_is_refused(family, tmp_path, monkeypatch):
    with cluster.workers("local:1") as hired:
        made = [Unit(pair, wb.spectral.delta_spectrum, {}) for pair in family]
        assert made[0].key
        # As on another machine whose folder of the same name holds something else.
        monkeypatch.setitem(vars(family.base), "identity", "0" * 64)
        reasons = hired.fill(tmp_path, made)
        assert reasons.keys() == {unit.key for unit in made}
        assert all(
            "give every machine the same checkpoints" in str(one) for one in reasons.values()
        )
    monkeypatch.undo()
    tokenizer = Path(family.base.reference) / "tokenizer.json"
    whole = tokenizer.read_bytes()
    with cluster.workers("local:1") as hired:
        made = [Unit(pair, wb.spectral.delta_spectrum, {}) for pair in family]
        assert made[0].key
        tokenizer.write_bytes(whole + b" ")
        reasons = hired.fill(tmp_path, made)
        tokenizer.write_bytes(whole)
        assert all(
            "give every machine the same checkpoints" in str(one) for one in reasons.values()
        )
        assert reasons.keys() == {unit.key for unit in made}
    monkeypatch.setattr(worker, "code_fingerprint", lambda: "0" * 64)
    with pytest.raises(wb.WorkbenchError, match=f"Expected code {'0' * 16} on every machine"):
        filled("local:1", tmp_path, family, wb.spectral.delta_spectrum)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "place", ["", "there", "local", "local:0", "local:x", "ray", "ray:", "slurm:2"]
)
def test_another_place_is_one_sentence(place: str):
    with (
        pytest.raises(wb.WorkbenchError, match="Expected --on here, local:N"),
        cluster.workers(place),
    ):
        pass


def test_places_that_are_not_there_are_one_sentence():
    for place, device, says in (
        ("ray:127.0.0.1:9", "cpu", "No Ray cluster answers at 127.0.0.1:9 "),
        ("local:2", "cuda:1", "Expected --device cuda, so that each worker"),
    ):
        with pytest.raises(wb.WorkbenchError, match=says), cluster.workers(place, device=device):
            pass


def test_workers_have_room_on_their_nodes(monkeypatch):
    monkeypatch.delenv(worker.THREADS)
    plain, big = {"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}
    assert workers_of_ray.room([plain, big], 0) == (
        17,
        4,
    )  # of as many threads as the smaller node has
    assert workers_of_ray.room([plain, big], 1.0) == (8, 8)
    assert workers_of_ray.room([plain, big], 0.5) == (16, 4)
    assert workers_of_ray.room([plain, big], 3) == (2, 32)
    with pytest.raises(wb.WorkbenchError, match="no node with 9 GPU"):
        workers_of_ray.room([plain, big], 9)
    with pytest.raises(wb.WorkbenchError, match="no node with 1 GPU"):
        workers_of_ray.room([plain], 1.0)
    monkeypatch.setenv(worker.THREADS, "2")
    assert workers_of_ray.room([plain, big], 0) == (34, 2)
    assert workers_of_ray.room([plain, big], 1.0) == (8, 2)
    monkeypatch.setenv(worker.THREADS, "65")
    with pytest.raises(wb.WorkbenchError, match="65 processors for a worker, the most is 64"):
        workers_of_ray.room([plain, big], 0)


@pytest.mark.parametrize(
    ("peak", "share"), [(0, 1), (10, 1 / 4), (30, 1 / 2), (45, 1), (80, 1), (200, 1)]
)
def test_small_units_share_a_gpu(peak: float, share: float):
    assert workers_of_ray.shared(peak, memory=80) == share
    assert workers_of_ray.shared(peak, memory=80, whole=True) == (3 if peak == 200 else 1)


def test_the_command_line_runs_workers_and_says_what_ran(folder, tmp_path):
    members = [f"--member={name}={folder / name}" for name in MEMBERS[:2]]
    chosen = ["--only", "spectral.delta_spectrum", "--out", tmp_path / "out", "--on", "local:2"]
    command = ["-m", "workbench.cli", "compare", folder / "base", *members, *chosen]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr
    made = wb.Result.load(tmp_path / "out" / "results" / "spectral.delta_spectrum")
    assert made.members == list(MEMBERS[:2])
    assert made.provenance.command.startswith("workbench compare")
    done = workbench("demo", "--on", "there")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
