"""Results in the tools that people follow their training with: Weights & Biases, MLflow and
TensorBoard. All of it goes to a folder; nothing is sent anywhere unless that is asked for.

Each gets the means of `workbench.export.summary` as scalars, RESULT/METRIC/MEMBER and what else
tells them apart; the tables; every figure as an image; and the provenance.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from workbench import figures
from workbench.errors import WorkbenchError
from workbench.export import markdown
from workbench.export.tables import KEYS, MOST, summary, to_csv
from workbench.export.wanting import wanted
from workbench.files.writing import Mark, replacing, require_free
from workbench.results.result import Result

Results = Mapping[str, Result] | Sequence[Result]
WHOLE = 10_000  # rows above which W&B gets a table's means
LONGEST = 80  # characters of one part of a name
ALL = "all members"  # of a table that tells none apart
MARK = "workbench.txt"  # in a folder of `to_tensorboard`


class Scalar(NamedTuple):
    """One mean. The texts are parts of names: no slash is in them."""

    result: str
    metric: str
    member: str
    where: str
    value: float

    @property
    def name(self) -> str:
        """All of it, in three parts by slashes: none is the beginning of another."""
        return f"{self.result}/{self.metric}/{f'{self.member} {self.where}'.strip()}"


def scalars(results: Mapping[str, Result]) -> Iterator[Scalar]:
    """Every mean that is a finite number, under a name of its own."""
    members = distinct([*figures.everyone([*results.values()]), ALL])
    seen: set[tuple[str, ...]] = set()
    for name, result in results.items():
        rows = summary(result)
        keys = [key for key in KEYS if key in rows and key != "member"]
        for _, row in rows[rows["value"].abs() < float("inf")].iterrows():
            told = [
                f"{key} {row[key]:g}" if isinstance(row[key], float) else str(row[key])
                for key in keys if pd.notna(row[key])
            ]  # fmt: skip
            member = members.get(str(row.get("member", ALL)), members[ALL])
            whole = (name, part(row["metric"]), member, part(" ".join(told)) if told else "")
            own, number = whole, 1
            while own in seen:
                number += 1
                own = (*whole[:3], f"{whole[3]} {number}")
            seen.add(own)
            yield Scalar(*own, float(row["value"]))


def part(text: Any) -> str:
    """Any text as a part of a name that all three take, and of a path; never empty."""
    plain = re.sub(r"[^\w.\- :]", "_", markdown.line(text))[:LONGEST].strip()
    return re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), plain) or "_"


def distinct(texts: Sequence[str]) -> dict[str, str]:
    """Each text as such a part, different texts as different ones."""
    found: dict[str, str] = {}
    for text in texts:
        own = whole = part(text)
        number = 1
        while own in found.values():
            number += 1
            own = f"{whole} {number}"
        found.setdefault(text, own)
    return found


def provenance(results: Mapping[str, Result]) -> dict[str, Any]:
    """What all of them come from, and each one's parameters, notes and fingerprint, as JSON."""
    first = asdict(next(iter(results.values())).provenance)
    shared = {name: first[name] for name in ("base", "device", "dtype", "versions", "command")}
    own = {
        name: {
            "analysis": one.analysis, "table": one.fingerprint, "seed": one.provenance.seed,
            "parameters": dict(one.provenance.parameters), "notes": list(one.provenance.notes),
        }
        for name, one in results.items()
    }  # fmt: skip
    return {**shared, "members": figures.everyone(list(results.values())), "results": own}


def to_wandb(
    results: Results,
    *,
    project: str = "workbench",
    mode: Literal["offline", "online"] = "offline",
    dir: str | Path = ".",
) -> Path:
    """One run of Weights & Biases with these Results; its folder, below dir/wandb.

    mode: "offline" writes files, which `wandb sync` can send later; "online" sends them now to the
    account that wandb is logged in to. The environment, the code and the machine's load are not
    recorded. Raises WorkbenchError where wandb is not installed, for another mode or no project's
    name, and where there are no results.
    """
    if mode not in ("offline", "online"):
        raise WorkbenchError(f"Expected the mode offline or online, found {mode!r}.")
    if not project or re.search(r"[/\\#?%:]", project):
        raise WorkbenchError(f"Expected a project's name without / \\ # ? % :, found {project!r}.")
    named, folder = _named(results), _folder(dir)
    # Of tables a copy is kept that `wandb sync` reads: with the run, not in the user's home.
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_DATA_DIR": str(folder / "wandb" / "data")}
    with _environment(**quiet), _drawn(named) as pictures:
        wandb = wanted("wandb")
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True,
            x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
        )  # fmt: skip
        with wandb.init(
            project=project, mode=mode, dir=str(folder), config=provenance(named),
            job_type="workbench", reinit="create_new", settings=settings,
        ) as run:  # fmt: skip
            for one in scalars(named):
                run.summary[one.name] = one.value
            logged = {f"tables/{name}": wandb.Table(dataframe=_rows(one))
                      for name, one in named.items()}  # fmt: skip
            logged |= {f"figures/{one.stem}": wandb.Image(str(one)) for one in pictures}
            run.log(logged)
            return Path(run.dir).parent


def to_mlflow(results: Results, tracking_uri: str | Path, *, experiment: str = "workbench") -> str:
    """One run of MLflow with these Results; its id.

    tracking_uri: a folder, which MLflow keeps as files (`MLFLOW_ALLOW_FILE_STORE=true mlflow ui
    --backend-store-uri FOLDER` shows it), or any address that MLflow takes, where it then goes.
    Every table is among its artifacts as CSV, the provenance as JSON. Raises WorkbenchError where
    MLflow is not installed, and where there are no results.
    """
    named, address = _named(results), str(tracking_uri)
    if not re.match(r"[a-z][a-z0-9+-]*:|databricks$", address):
        address = _folder(tracking_uri).resolve().as_uri()
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    with _environment(**quiet), _drawn(named) as pictures, tempfile.TemporaryDirectory() as place:
        client = wanted("mlflow.tracking").MlflowClient(tracking_uri=address)
        entities, about = wanted("mlflow.entities"), provenance(named)
        known = client.get_experiment_by_name(experiment)
        home = known.experiment_id if known is not None else client.create_experiment(experiment)
        tags = {f"version.{part(name)}": text for name, text in about["versions"].items()}
        tags |= {"command": about["command"], "members": ", ".join(about["members"])}
        run = client.create_run(home, run_name="workbench", tags=tags).info.run_id
        said = {f"base.{part(name)}": str(text) for name, text in about["base"].items()}
        for name, text in (said | {n: about[n] for n in ("device", "dtype")}).items():
            client.log_param(run, name, text)
        metrics = [entities.Metric(s.name, s.value, 0, 0) for s in scalars(named)]
        for at in range(0, len(metrics), 1000):
            client.log_batch(run, metrics=metrics[at : at + 1000])
        client.log_dict(run, about, "provenance.json")
        for name, one in named.items():
            client.log_artifact(run, str(to_csv(one, Path(place) / f"{name}.csv")), "tables")
        for one in pictures:
            client.log_artifact(run, str(one), "figures")
        client.set_terminated(run)
    return run


def to_tensorboard(results: Results, folder: str | Path) -> Path:
    """These Results as a folder for TensorBoard, a run a member, and one, "report", of figures,
    tables of means and the provenance; the folder.

    A folder of an earlier call is replaced. Raises WorkbenchError where tensorboard is not
    installed, where there are no results, and where `folder` holds anything else.
    """
    named, folder = _named(results), Path(folder)
    require_free(folder, TENSORBOARD)
    wanted("tensorboard")
    writer = wanted("torch.utils.tensorboard").SummaryWriter
    imread = wanted("matplotlib.image").imread
    by_member: dict[str, list[Scalar]] = {}
    for one in scalars(named):
        by_member.setdefault(one.member, []).append(one)
    with replacing(folder, TENSORBOARD) as fresh, _drawn(named) as pictures:
        (fresh / MARK).write_text("Written by workbench for TensorBoard.\n", encoding="utf-8")
        for member, own in by_member.items():
            with writer(str(fresh / "members" / member)) as log:
                for one in own:
                    log.add_scalar(f"{one.result}/{one.metric} {one.where}".strip(), one.value)
        with writer(str(fresh / "report")) as log:
            for name, one in named.items():
                log.add_text(f"tables/{name}", _means(one))
            for one in pictures:
                log.add_image(f"figures/{one.stem}", imread(one), dataformats="HWC")
            told = pd.Series(provenance(named)).to_json(indent=1, default_handler=str)
            log.add_text("provenance", markdown.block(told.splitlines()))
    return folder


def _events(folder: Path) -> bool:
    return folder.is_dir() and (folder / MARK).is_file() and all(
        one.name == MARK or one.name.startswith("events.out.tfevents.")
        for one in folder.rglob("*") if one.is_symlink() or not one.is_dir()
    )  # fmt: skip


TENSORBOARD = Mark("a folder for TensorBoard", _events, "give another folder")


def _named(results: Results) -> dict[str, Result]:
    """Results by a name each, which is a part of names."""
    found = figures.named(results)
    if not found:
        raise WorkbenchError(
            "Expected at least one result to export, found none; give the --out folder of a run."
        )
    return {own: found[name] for name, own in distinct([*found]).items()}


def _folder(path: str | Path) -> Path:
    """A folder to which a tool adds a run of its own."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise WorkbenchError(f"Expected a folder at {path}, found a file; give another folder.")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that hold in the block, where nobody has set them."""
    fresh = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for name in fresh:
            os.environ.pop(name, None)


@contextmanager
def _drawn(results: Mapping[str, Result]) -> Iterator[list[Path]]:
    """Every figure as a PNG file, for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        yield figures.save_all(results, Path(folder), formats=("png",))


def _rows(result: Result) -> pd.DataFrame:
    """The table, or the means of a long one, in plain values and None."""
    rows = result.table if len(result.table) <= WHOLE else summary(result)
    return rows.astype(object).where(rows.notna(), None)


def _means(result: Result) -> str:
    """The first means in Markdown."""
    rows = summary(result)
    cells = [
        [
            "" if pd.isna(v) else markdown.plain(f"{v:.4g}" if isinstance(v, float) else v)
            for v in row
        ]
        for row in rows.head(MOST).itertuples(index=False)
    ]
    more = len(rows) - len(cells)
    return markdown.table(list(rows), cells) + (f"\n\n{more} more rows." if more > 0 else "")
