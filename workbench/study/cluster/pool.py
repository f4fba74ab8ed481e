"""Units given out to workers, their Results kept as they come, and lost workers replaced."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, Protocol

from workbench.errors import WorkbenchError
from workbench.progress import progress
from workbench.results.result import Result
from workbench.study.units import Unit

TRIES = 3  # workers that one unit may lose
START = "their start"
SILENCE = 60  # seconds without a worker, before it is said


class Lane(Protocol):
    """One worker. ready: done when it can take units."""

    ready: Future[Any]

    def submit(self, unit: Unit) -> Future[Result]: ...

    def reason(self, error: Exception) -> Exception | None:
        """What the unit raised; None where the worker was lost."""
        ...

    def stop(self) -> None:
        """End the worker, whatever it does."""
        ...

    def again(self) -> Lane:
        """Another worker in the place of this one."""
        ...


class Crew:
    """At most `most` workers, made by `hire` (of the number of workers there are) when there is
    work for them."""

    def __init__(self, most: int, hire: Callable[[int], Lane]) -> None:
        self.most, self.hire = most, hire
        self.idle: deque[Lane] = deque()
        self.running: dict[Future[Any], tuple[Lane, Unit | None]] = {}  # None: getting ready
        self.last: dict[str, Lane] = {}  # members -> who had them last
        self.lost: Counter[str] = Counter()
        self.bar = progress(total=0, desc="units")

    def fill(self, store: Path, wanted: Sequence[Unit]) -> dict[str, Exception]:
        """Run those of the units that `store` lacks, and keep each Result as it comes.

        Returns what units raised, by their keys; one that lost `TRIES` workers counts among them.
        Raises where workers cannot start or a Result cannot be written: then no further unit
        begins, and those that run are waited for and kept.
        """
        found = {unit.key: unit for unit in wanted}
        missing = deque(unit for unit in found.values() if not unit.kept(store))
        self.bar.total += len(found)
        self.bar.update(len(found) - len(missing))
        self.prepare(len(missing))
        failed: dict[str, Exception] = {}
        first: Exception | None = None
        while missing or any(unit for _, unit in self.running.values()):
            while self.idle and missing:
                lane, unit = self._next(missing)
                self.running[lane.submit(unit)] = lane, unit
            done = wait(self.running, timeout=SILENCE, return_when=FIRST_COMPLETED).done
            if not done and not any(unit for _, unit in self.running.values()):
                self.bar.write("units: no worker has started yet; still waiting.", file=sys.stderr)
            for future in done:
                try:
                    self._take(future, store, missing, failed)
                except Exception as error:
                    first = first or error
                    missing.clear()
        if first is not None:
            raise first
        return failed

    def prepare(self, units: int | None = None) -> None:
        """Let workers start, as many as there may be, or as so many units need."""
        wanted = self.most if units is None else min(self.most, units)
        while (hired := len(self.idle) + len(self.running)) < wanted:
            self._add(self.hire(hired))

    def stop(self) -> None:
        """End all workers, whatever they do."""
        for lane in [*self.idle, *(lane for lane, _ in self.running.values())]:
            lane.stop()
        self.bar.close()

    def _add(self, lane: Lane) -> None:
        self.running[lane.ready] = lane, None

    def _next(self, missing: deque[Unit]) -> tuple[Lane, Unit]:
        """An idle worker, and the first unit of members that it had last or nobody had; where all
        are somebody else's, the first."""
        lane = self.idle.popleft()
        own = (u for u in missing if self.last.get(_members(u), lane) is lane)
        unit = next(own, missing[0])
        missing.remove(unit)
        self.last[_members(unit)] = lane
        return lane, unit

    def _take(
        self,
        future: Future[Any],
        store: Path,
        missing: deque[Unit],
        failed: dict[str, Exception],
    ) -> None:
        """Keep what a worker gave, or what its unit raised; replace a worker that was lost."""
        lane, unit = self.running.pop(future)
        try:
            made = future.result()
        except Exception as error:
            reason = lane.reason(error)
            if reason is not None:
                self.idle.append(lane)
                if unit is None:
                    raise reason from reason.__cause__
                self._give_up(unit, reason, failed)
                return
            lane.stop()
            self.last = {who: own for who, own in self.last.items() if own is not lane}
            spent = self._spent(unit, error)
            if unit is None and spent:
                raise spent from None
            if unit is not None and spent:
                self._give_up(unit, spent, failed)
            elif unit is not None:
                missing.appendleft(unit)
            self._add(lane.again())
            return
        self.idle.append(lane)
        if unit is None:
            del self.lost[START]
        else:
            made.save(store / unit.key)
            self.bar.update()

    def _give_up(self, unit: Unit, reason: Exception, failed: dict[str, Exception]) -> None:
        failed[unit.key] = reason
        self.bar.update()

    def _spent(self, unit: Unit | None, error: Exception) -> WorkbenchError | None:
        """What is said of a unit that has now lost too many workers, or where so many in a row
        were lost at their start."""
        key, name = (unit.key, unit.name) if unit else (START, START)
        self.lost[key] += 1
        if self.lost[key] < TRIES:
            return None
        told = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        likely = "a unit may need more memory than there is; use fewer workers"
        if unit is None:
            likely = 'a script that starts workers needs `if __name__ == "__main__":`'
        return WorkbenchError(f"{TRIES} workers ended unexpectedly at {name} ({told}); {likely}.")


def _members(unit: Unit) -> str:
    return ",".join(unit.members)


class Here:
    """This process as a worker: a unit is done when `submit` returns."""

    def __init__(self) -> None:
        self.ready: Future[Any] = Future()
        self.ready.set_result(None)

    def submit(self, unit: Unit) -> Future[Result]:
        made: Future[Result] = Future()
        try:
            made.set_result(unit.run())
        except Exception as error:
            made.set_exception(error)
        return made

    def reason(self, error: Exception) -> Exception:
        return error

    def stop(self) -> None:
        pass

    def again(self) -> Here:
        return self
