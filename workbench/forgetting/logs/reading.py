"""Which log is it? A file or folder of lm-evaluation-harness or inspect-ai, read strictly."""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError, reason, some, visible
from workbench.files.reading import MIB, parsed, read_json, read_text
from workbench.forgetting.logs import harness_rows, inspect_samples
from workbench.forgetting.logs.item import Log, Task

MOST = 512 * MIB  # of one log, unpacked
MOST_FILES = 2000  # of a folder of logs
NAMED = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:+-]+)")
ZSTANDARD = 93  # the method of compression that inspect-ai uses since 2025
WANTED = (
    "give a samples_TASK_DATE.jsonl that lm-eval wrote with --log_samples, the folder of its "
    "output, or a log of inspect-ai (.json or .eval)"
)
REWRITE = "write it as JSON with `inspect log convert --to json --output-dir FOLDER LOG`"


def read_log(path: str | Path) -> Log:
    """What a log holds. path: a samples_*.jsonl, an output folder of lm-eval that holds several, a
    log of inspect-ai (.json, .eval), or a folder of such logs; of several logs of one task in a
    folder the newest counts, and a note says so. Raises WorkbenchError for anything else."""
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise WorkbenchError(f"Expected a log of an evaluation at {path}, found none; {WANTED}.")
    return (_inspect if path.suffix in (".eval", ".json") else _harness)(path, [path])


def _folder(path: Path) -> Log:
    harness = _within(path, ("samples_*.jsonl",))
    logs = [] if harness else _within(path, ("*.eval", "*.json"))
    if not harness and not logs:
        raise WorkbenchError(f"{path} holds no log of an evaluation; {WANTED}.")
    return _harness(path, harness) if harness else _inspect(path, logs)


def _within(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of a folder, else of the one folder in it that has any, in their order."""
    found: list[Path] = []
    for inside in ("", "*/"):
        for pattern in patterns:
            found += [one for one in path.glob(inside + pattern) if one.is_file()]
        if found:
            break
    folders = sorted({one.parent for one in found})
    if len(folders) > 1:
        names = some([visible(folder.name) for folder in folders])
        raise WorkbenchError(f"{path} holds logs of several runs, in {names}; give one of these.")
    if len(found) > MOST_FILES:
        raise WorkbenchError(
            f"{path} holds {len(found)} logs, and no more than {MOST_FILES} are read; give a "
            "folder of fewer."
        )
    return sorted(found)


def _newest(files: Mapping[Path, str]) -> tuple[list[Path], list[str]]:
    """Of the files of each task the last one by name, and a note for what was passed over."""
    last: dict[str, Path] = {}
    older: list[str] = []
    for file in sorted(files):
        if files[file] in last:
            older.append(files[file])
        last[files[file]] = file
    kept = [file for file in sorted(files) if last[files[file]] == file]
    names = some(list(dict.fromkeys(older)))
    return kept, [f"there are several logs of {names}, and the newest is read"] if older else []


def _harness(path: Path, files: list[Path]) -> Log:
    """samples_*.jsonl of lm-eval, each beside the results_*.json of its run, where that is."""
    matches = {file: NAMED.fullmatch(visible(file.stem)) for file in files}
    several = len(files) > 1
    plain = {file: visible(file.stem).removeprefix("samples_") if several else "" for file in files}
    names = {file: m["task"] if m else plain[file] for file, m in matches.items()}
    kept, notes = _newest(names)
    tasks: list[Task] = []
    sums, models = [], []
    for file in kept:
        match = matches[file]
        beside = file.with_name(f"results_{match['date']}.json") if match else None
        results = _json(beside) if beside is not None and beside.is_file() else {}
        text = read_text(file, most=MOST, remedy=WANTED)
        sums.append(hashlib.sha256(text.encode()).hexdigest())
        models.append(harness_rows.model_of(results))
        try:
            tasks += harness_rows.tasks_of(harness_rows.rows_of(text), names[file], results)
        except WorkbenchError as error:
            raise WorkbenchError(f"{file}: {error}; {WANTED}.") from error
    return Log(path, "lm-eval", _model(models), _sum(sums), tuple(tasks), tuple(notes))


def _inspect(path: Path, files: list[Path]) -> Log:
    notes: list[str] = []
    tasks: dict[Path, Task] = {}
    about: dict[Path, Mapping[str, Any]] = {}
    sums: dict[Path, str] = {}
    for file in files:
        found, samples = _archive(file) if file.suffix == ".eval" else _whole(file)
        if not inspect_samples.is_log(found):
            if len(files) > 1:  # what else lies in a folder, such as a listing of it
                continue
            raise WorkbenchError(
                f"{file} is not a log of inspect-ai, which would have an eval; {WANTED}."
            )
        about[file] = found
        try:
            tasks[file] = inspect_samples.task_of(found, samples)
        except WorkbenchError as error:
            raise WorkbenchError(f"{file}: {error}; {WANTED}.") from error
        sums[file] = _sum([_file_sum(file)])
    if not tasks:
        raise WorkbenchError(f"{path} holds no log of an evaluation; {WANTED}.")
    kept, passed = _newest({file: task.name for file, task in tasks.items()})
    for file in kept:
        notes += inspect_samples.notes_of(about[file])
    models = [inspect_samples.model_of(about[file]) for file in kept]
    return Log(
        path,
        "inspect-ai",
        _model(models),
        _sum([sums[file] for file in kept]),
        tuple(tasks[file] for file in kept),
        tuple([*passed, *notes]),
    )


def _whole(file: Path) -> tuple[Mapping[str, Any], list[Any]]:
    """(a log of JSON but for its samples, its samples)."""
    found = _json(file)
    samples = found.pop("samples", None)
    return found, samples if isinstance(samples, list) else []


def _json(file: Path) -> dict[str, Any]:
    return read_json(file, most=MOST, remedy=WANTED)


def _archive(file: Path) -> tuple[Mapping[str, Any], list[Any]]:
    """The same of a .eval, a zip of JSON: header.json and samples/ID_epoch_N.json."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [one for one in archive.infolist() if one.filename.startswith("samples/")]
            left = MOST
            if "header.json" not in archive.namelist():
                raise WorkbenchError(
                    f"{file} has no header.json, so its run was interrupted; finish it "
                    "with `inspect eval-retry`."
                )
            found = []
            for info in [archive.getinfo("header.json"), *names]:
                raw = _unpacked(archive, info, left)
                left -= len(raw)
                found.append(parsed(raw.decode("utf-8")))
    except WorkbenchError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError,
            NotImplementedError) as error:  # fmt: skip
        raise WorkbenchError(f"{file} cannot be read ({reason(error)}); {REWRITE}.") from error
    header, *samples = found
    return header, samples


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """One file of an archive, of at most `most` bytes."""
    if info.compress_type == ZSTANDARD:
        raw = _zstandard(archive, info, most)
    else:
        with archive.open(info) as packed:
            raw = packed.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"it is larger than {MOST // MIB} MiB when unpacked")
    return raw


def _zstandard(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """What zipfile does not unpack before Python 3.14."""
    try:
        import zstandard
    except ImportError as error:
        raise ValueError("it is packed by zstandard, which is not installed") from error
    file: Any = archive.fp
    file.seek(info.header_offset)
    head = file.read(30)  # of which the last four bytes are the lengths of what follows
    if len(head) < 30:
        raise EOFError("a file in it is cut off")
    file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
    packed = file.read(min(info.compress_size, most))
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            packed, read_across_frames=True
        )
        return b"".join(_pieces(reader, most + 1))
    except zstandard.ZstdError as error:
        raise ValueError(f"{info.filename} is damaged: {error}") from error


def _pieces(reader: Any, most: int) -> Iterator[bytes]:
    while most > 0 and (piece := reader.read(min(MIB, most))):
        most -= len(piece)
        yield piece


def _file_sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sum(sums: list[str]) -> str:
    """Of several files, whatever they are called."""
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def _model(models: list[str]) -> str:
    return some([visible(one) for one in dict.fromkeys(models) if one])
