"""The application's own metrics: what all workers have registered with `prometheus_client`, as one page.

Owns where the values live: in the files of prometheus_client's multi-process mode, in the directory that outlives the
workers (coordination/place.py). A worker calls `prepare` before it imports the application; the admin process calls
`collect`. prometheus_client does the rest, and is imported only if the application imports it.

1. The files of a process are named by its slot and its seat (coordination/seats.py), not by its pid. The next process
   in that seat adds to what it finds, so no total ever falls, and the number of files stays small.
2. A gauge of the modes `all` and `live...` counts as long as its process lives. Whoever takes a seat, or collects,
   removes those of dead ones.
3. Reading waits for no worker. The values of one that is stopped are those that it had.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from limpet.coordination import place, seats

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_MODULE: Final = "prometheus_client.values"


def folder(directory: str) -> str:
    """Return the folder of the files in *directory*, that of the place."""
    return os.path.join(directory, "metrics")


def prepare(directory: str, slot: int) -> None:
    """Let prometheus_client keep its values in shared files, if the application imports it. Runs in a worker.

    An application that has set PROMETHEUS_MULTIPROC_DIR keeps its own.
    """
    if not directory or _VARIABLE in os.environ or _MODULE in sys.modules:
        return
    os.makedirs(folder(directory), 0o700, exist_ok=True)
    os.environ[_VARIABLE] = folder(directory)
    sys.meta_path.insert(0, _Finder(slot))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `prometheus_client.values` as ever, and tells it how to name the files."""

    def __init__(self, slot: int) -> None:
        self._slot = slot

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of that one module, and None for all others."""
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._slot)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, slot: int) -> None:
        self._loader = loader
        self._slot = slot

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave that to the loader of the file."""
        found: ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then let its values be files of this process's seat."""
        self._loader.exec_module(module)
        own: list[int] = []

        def name() -> str:
            seat = seats.mine()
            if own != [os.getpid()]:
                own[:] = [os.getpid()]
                _remove_own(os.environ[_VARIABLE], seat)
            return f"{self._slot}-{seat}"

        vars(module)["ValueClass"] = vars(module)["MultiProcessValue"](name)


def _remove_own(where: str, seat: int) -> None:
    """Remove the gauges that speak of one process alone, those of a process that was in *seat*."""
    for mode in ("all", "live*"):
        for path in Path(where).glob(f"gauge_{mode}_*-{seat}.db"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def collect(directory: str, fd: int, *, by_slot: bool = False) -> Iterable[Any]:
    """Return the metrics of all workers as prometheus_client's families: summed, or with the label `slot`.

    *fd* is the memory file of the place. Raises what prometheus_client raises if a worker has spoilt a file. Runs in
    the admin process.
    """
    from prometheus_client.multiprocess import MultiProcessCollector

    where, here = folder(directory), place.Place(fd, directory)
    for seat in {int(path.stem.rpartition("-")[2]) for path in Path(where).glob("gauge_*.db")}:
        if here.try_lock(place.SEAT_LOCKS + seat):
            _remove_own(where, seat)
            here.unlock(place.SEAT_LOCKS + seat)
    slots: dict[str, list[str]] = {}
    for path in sorted(Path(where).glob("*.db")):
        slot = path.stem.rpartition("_")[2].partition("-")[0]
        if path.stat().st_size:  # it is just being made
            slots.setdefault(slot if by_slot else "", []).append(str(path))
    found: dict[str, Any] = {}
    for slot, files in slots.items():
        for metric in MultiProcessCollector.merge(files):  # type: ignore[no-untyped-call]
            samples = {}
            for each in metric.samples:
                labels = _labels(each.labels, slot)
                samples[each.name, tuple(sorted(labels.items()))] = each._replace(labels=labels)
            kept = found.setdefault(metric.name, metric)
            kept.samples = [*(kept.samples if kept is not metric else ()), *samples.values()]
    return found.values()


def _labels(labels: dict[str, str], slot: str) -> dict[str, str]:
    """Return *labels* with `slot` if it is asked for, or if a gauge names its process: then in place of that."""
    pid = labels.get("pid", "").partition("-")
    if pid[1]:
        labels = {name: value for name, value in labels.items() if name != "pid"} | {"slot": pid[0]}
    return {**labels, "slot": slot} if slot else labels
