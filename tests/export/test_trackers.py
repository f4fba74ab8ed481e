"""Each tool's own reader reads back what was written; nothing leaves the machine."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.conftest import contents
from tests.export.hostile import NAMES, retained
from workbench.export import summary, to_mlflow, to_tensorboard, to_wandb
from workbench.export.trackers import distinct, part, scalars
from workbench.results.run_folder import load

KEPT = Path(__file__).parents[2] / "figures" / "family"
ONE = "forgetting.retention"


@pytest.fixture(scope="module")
def results() -> dict[str, wb.Result]:
    """Two real Results, one of them of values per matrix, and one of names of any kind."""
    # Without single items, of which an export has no means.
    found = load(KEPT) | {ONE: load(KEPT.parent / "forgetting")[ONE]}
    own = {name: found[name] for name in ("spectral.delta_spectrum", ONE)}
    return own | {"../a/b": retained(NAMES[:6])}


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch, tmp_path: Path) -> Iterator[None]:
    """Whatever asks another machine, in this process or one that it starts, asks this proxy."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.lower(), address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        before = {*os.environ, "WANDB_SERVICE"}  # by which wandb's own processes find each other
        yield
        with pytest.raises(BlockingIOError):
            listening.accept()
        assert {*os.environ} <= before


def expected(result: wb.Result) -> list[float]:
    """Every mean of the table that is a number, by itself."""
    if result.analysis == ONE:
        return sorted(result.table["value"].dropna())
    return sorted(summary(result)["value"].dropna())


def png_sizes(results: dict[str, wb.Result]) -> int:
    from workbench.figures import drawings

    every = list(results.values())
    return sum(1 for one in every for _ in drawings(one, every))


def test_tensorboard_reads_it_back(results, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = to_tensorboard(results, tmp_path / "board")
    found: dict[str, list[float]] = {}
    members = sorted((out / "members").iterdir())
    for member in members:
        read = EventAccumulator(str(member)).Reload()
        for tag in read.Tags()["scalars"]:
            (event,) = read.Scalars(tag)
            found.setdefault(tag.partition("/")[0], []).append(event.value)
    for name, own in distinct(list(results)).items():
        np.testing.assert_allclose(sorted(found[own]), expected(results[name]), rtol=1e-6)
    read = EventAccumulator(str(out / "members" / "lora-r4")).Reload()
    table = results[ONE].table
    (score,) = table.query("member == 'lora-r4' and task == 'boxes' and metric == 'score'")["value"]
    assert read.Scalars(f"{ONE}/score boxes")[0].value == pytest.approx(score)
    report = EventAccumulator(str(out / "report"), size_guidance={"images": 0}).Reload()
    assert len(report.Tags()["images"]) == png_sizes(results)
    texts = {tag: report.Tensors(tag)[0].tensor_proto for tag in report.Tags()["tensors"]}
    told = texts["provenance/text_summary"].string_val[0].decode()
    about = json.loads(told.partition("\n")[2].rpartition("\n")[0])
    assert about["base"] == dict(results["spectral.delta_spectrum"].provenance.base)
    assert f"tables/{ONE}/text_summary" in texts
    assert b"<script>" not in b"".join(v for one in texts.values() for v in one.string_val)


def test_a_folder_for_tensorboard_is_replaced_and_no_other(tmp_path: Path):
    pytest.importorskip("tensorboard")
    one, two = retained(("a",)), retained(("b",))
    out = to_tensorboard([one], tmp_path / "board")
    to_tensorboard([two], out)
    assert [path.name for path in (out / "members").iterdir()] == ["b"]
    (out / "members" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(wb.WorkbenchError, match="does not hold a folder for TensorBoard"):
        to_tensorboard([one], out)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board"]


def test_mlflow_reads_it_back(results, tmp_path: Path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    run = to_mlflow(results, tmp_path / "store")
    again = to_mlflow(results, "store")  # a second run beside it
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
    from mlflow.tracking import MlflowClient

    with pytest.MonkeyPatch.context() as reading:
        reading.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    home = client.get_experiment_by_name("workbench")
    assert home is not None
    assert {one.info.run_id for one in client.search_runs([home.experiment_id])} == {run, again}
    data = client.get_run(run).data
    found: dict[str, list[float]] = {}
    for key, value in data.metrics.items():
        found.setdefault(key.partition("/")[0], []).append(value)
    for name, own in distinct(list(results)).items():
        np.testing.assert_array_equal(sorted(found[own]), expected(results[name]))
        file = Path(client.download_artifacts(run, f"tables/{own}.csv", str(tmp_path)))
        read = pd.read_csv(file, float_precision="round_trip", keep_default_na=False)
        assert len(read) == len(results[name].table)
    table = results[ONE].table
    (score,) = table.query("member == 'full' and task == 'facts' and metric == 'score'")["value"]
    assert data.metrics[f"{ONE}/score/full facts"] == score
    provenance = results["spectral.delta_spectrum"].provenance
    assert data.params["base.fingerprint"] == provenance.base["fingerprint"]
    assert data.tags["version.torch"] == provenance.versions["torch"]
    about = json.loads(Path(client.download_artifacts(run, "provenance.json")).read_text())
    assert about["results"][ONE]["table"] == results[ONE].fingerprint
    assert len(client.list_artifacts(run, "figures")) == png_sizes(results)
    assert client.get_run(run).info.status == "FINISHED"


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: behind 7 bytes LevelDB's log, blocks of 32 KiB in which a
    fragment has a checksum, its length, and 1 for whole, 2 first, 3 middle, 4 last."""
    from wandb.proto import wandb_internal_pb2

    kind_of: Any = wandb_internal_pb2
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):
            return
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = kind_of.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def finished(file: Path) -> list[Any]:
    """All records, once wandb's own process has written the last of them."""
    for _ in range(100):
        found = list(records(file))
        if any(one.WhichOneof("record_type") == "exit" for one in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} ends without a record of the run's end")


def test_wandbs_own_records_hold_it(results, tmp_path: Path):
    pytest.importorskip("wandb")
    folder = to_wandb(results, project="mine", dir=tmp_path)
    assert folder.parent == tmp_path / "wandb"
    (file,) = folder.glob("*.wandb")
    written = finished(file)
    run = next(one.run for one in written if one.WhichOneof("record_type") == "run")
    summed = {
        one.key: json.loads(one.value_json)
        for record in written
        if record.WhichOneof("record_type") == "summary"
        for one in record.summary.update
        if one.key
    }
    assert run.project == "mine"
    config = {one.key: json.loads(one.value_json) for one in run.config.update}
    assert config["base"] == dict(results["spectral.delta_spectrum"].provenance.base)
    assert config["results"][ONE]["table"] == results[ONE].fingerprint
    found: dict[str, list[float]] = {}
    for key, value in summed.items():
        if key.count("/") == 2 and isinstance(value, float | int):
            found.setdefault(key.partition("/")[0], []).append(value)
    for name, own in distinct(list(results)).items():
        np.testing.assert_allclose(sorted(found[own]), expected(results[name]), rtol=1e-12)
    (table,) = (folder / "files" / "media" / "table" / "tables").glob(f"{ONE}*.json")
    kept = json.loads(table.read_text())
    assert kept["columns"] == list(results[ONE].table)
    own = kept["columns"].index("value")
    np.testing.assert_array_equal(
        [row[own] for row in kept["data"]], results[ONE].table["value"].to_numpy()
    )
    images = list((folder / "files" / "media" / "images").rglob("*.png"))
    assert len(images) == png_sizes(results)
    # Nothing of this machine: no environment, no code, and no copy outside.
    assert not (folder / "files" / "requirements.txt").exists()
    assert not (folder / "files" / "wandb-metadata.json").exists()
    assert not (tmp_path / "home" / ".local").exists()


def test_names_are_parts_and_none_is_lost():
    made = {"x": retained()}
    found = list(scalars(made))
    assert len(found) == len(made["x"].table)
    names = [one.name for one in found]
    assert len({*names}) == len(names)
    assert all(name.count("/") == 2 and ".." not in name.split("/") for name in names)
    assert all(not name.startswith("/") and "\n" not in name for name in names)
    assert sorted(one.value for one in found) == sorted(made["x"].table["value"])
    same = distinct(["a&b", "a%b", "a b", "", "."])
    assert list(same.values()) == ["a_b", "a_b 2", "a b", "_", "_ 2"]
    assert len(part("x" * 500)) == 80


def test_what_is_no_number_is_no_scalar():
    made = retained(("a",), ("t",))
    made.table.loc[0, "value"] = math.nan
    made.table.loc[1, "value"] = math.inf
    assert list(scalars({"x": made})) == []


@pytest.mark.parametrize(
    ("package", "ask"),
    [
        ("wandb", lambda one, place: to_wandb([one], dir=place)),
        ("mlflow", lambda one, place: to_mlflow([one], place)),
        ("tensorboard", lambda one, place: to_tensorboard([one], place)),
        ("xarray", lambda one, place: one.to_xarray()),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_command(
    package: str, ask, monkeypatch, tmp_path: Path
):
    for name in [own for own in sys.modules if own.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(wb.WorkbenchError, match=f"package {package}.*finetune-workbench") as told:
        ask(retained(("a",)), tmp_path)
    assert "pip install 'finetune-workbench[export]'" in str(told.value)


def test_bad_input_is_one_sentence(tmp_path: Path):
    one = retained(("a",))
    with pytest.raises(wb.WorkbenchError, match="offline or online, found 'on'"):
        to_wandb([one], mode="on", dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(wb.WorkbenchError, match="project's name"):
        to_wandb([one], project="a/b", dir=tmp_path)
    (tmp_path / "file").write_text("")
    for ask in (lambda: to_wandb([one], dir=tmp_path / "file"),
                lambda: to_mlflow([one], tmp_path / "file"),
                lambda: to_tensorboard([one], tmp_path / "file")):  # fmt: skip
        with pytest.raises(wb.WorkbenchError, match=r"file"):
            ask()
    for ask in (lambda: to_wandb([], dir=tmp_path), lambda: to_mlflow({}, tmp_path),
                lambda: to_tensorboard([], tmp_path / "new")):  # fmt: skip
        with pytest.raises(wb.WorkbenchError, match="at least one result"):
            ask()
