"""Many runs on all cores.

A lane is a process that plays one run after another, a chunk at a time: the runs of a chunk share
their sessions and bounds, which stay in that process. A run that fails, or takes its process with
it, is reported; the others go on.
"""

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import active_children, get_context, parent_process
from typing import NamedTuple, Protocol

from mars.compare.cells import Run, play
from mars.compare.row import Row
from mars.compare.store import Failure, Store


class Watcher(Protocol):
    def run_done(self, *, ok: bool) -> None: ...


def run_grid(
    chunks: Sequence[Sequence[Run]], store: Store, jobs: int, watcher: Watcher
) -> list[Failure]:
    """Play what the store lacks, and write its table. A KeyboardInterrupt leaves a journal."""
    failures = []
    left = [[run for run in chunk if run.key not in store.rows] for chunk in chunks]
    with closing(_played([chunk for chunk in left if chunk], jobs)) as ended:
        for run, result in ended:
            if isinstance(result, Row):
                store.add(result)
            else:
                failures.append(Failure(key=run.key, run=run.title, error=result))
                store.add_failure(failures[-1])
            watcher.run_done(ok=isinstance(result, Row))
    store.write_table([run.key for chunk in chunks for run in chunk])
    return failures


class _Ended(NamedTuple):
    run: Run
    result: Row | str
    """A text says what went wrong."""


class _Lane:
    def __init__(self) -> None:
        self._process = _process()
        self.chunk: deque[Run] = deque()
        self.run: Run

    def start(self) -> Future[Row | str]:
        self.run = self.chunk.popleft()
        return self._process.submit(_attempt, self.run)

    def end(self, future: Future[Row | str]) -> _Ended:
        try:
            return _Ended(self.run, future.result())
        except BrokenProcessPool:
            self._process = _process()
            return _Ended(self.run, "its process was killed (is the memory enough for --jobs?)")

    def close(self) -> None:
        self._process.shutdown()


def _played(chunks: Sequence[Sequence[Run]], jobs: int) -> Generator[_Ended]:
    todo = iter(chunks)
    lanes = [_Lane() for _ in range(min(jobs, len(chunks)))]
    under_way: dict[Future[Row | str], _Lane] = {}

    def go_on(lane: _Lane) -> None:
        if not lane.chunk:
            lane.chunk.extend(next(todo, ()))
        if lane.chunk:
            under_way[lane.start()] = lane

    try:
        for lane in lanes:
            go_on(lane)
        while under_way:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                lane = under_way.pop(future)
                ended = lane.end(future)
                go_on(lane)  # first: it need not wait for the journal
                yield ended
    finally:
        if under_way:
            for process in active_children():
                process.terminate()
        for lane in lanes:
            lane.close()


# -- in a lane's process --------------------------------------------------------------------------


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent cannot end us, and nothing else would: our pipes are open at both ends."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _attempt(run: Run) -> Row | str:
    try:
        return play(run).row
    except Exception:  # noqa: BLE001  whatever it is: it belongs to this run alone
        return traceback.format_exc()
