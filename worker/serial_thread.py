"""A thread of its own for what is done one after the other, and together where much waits."""

import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar, cast

import trio

T = TypeVar("T")

# Handed over at once. The loop is to hear of the first soon, and what each holds until all are over
# may be a report's output: 64 of those took 40 MiB.
MOST_TOGETHER = 16


class Work:
    """A call, to be done for the task that waits for it; done again, its first outcome is lost."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._context = contextvars.copy_context()
        self._result: object = None
        self.failure: Exception | None = None
        self.task = trio.lowlevel.current_task()
        self.token = trio.lowlevel.current_trio_token()

    def do(self) -> None:
        self._result = self.failure = None
        try:
            self._result = self._context.run(self._call)
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self.failure = error

    def outcome(self) -> object:
        if self.failure is not None:
            raise self.failure
        return self._result


class SerialThread:
    """`do` is given all that waits; it sees to it that each is done.

    For a small transaction `trio.to_thread` takes twice the processor time, 0.33 ms against 0.16:
    it looks for an idle thread each time, and wakes the loop for each.
    """

    def __init__(self, do: Callable[[Sequence[Work]], None]) -> None:
        self._do = do
        self._waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """In the caller's context. What has begun is never cut short, nor is what waits.

        Raises trio.ClosedResourceError after `close`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._is_closed:
            raise trio.ClosedResourceError("the thread has ended")
        if self._thread is None:
            thread = threading.Thread(target=self._work_forever, name="database", daemon=True)
            thread.start()  # which may fail, and is tried again then
            self._thread = thread
        work = Work(call)
        self._waiting.put(work)
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return cast("T", work.outcome())

    def close(self) -> None:
        """Do all that waits, and end; what is asked for from now on is refused."""
        self._is_closed = True
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def _work_forever(self) -> None:
        while self._work_once():
            pass  # in a function of its own: while it waits it refers to no work that is done

    def _work_once(self) -> bool:
        """Whether it goes on."""
        works = self._take()
        if not works:
            return False
        try:
            self._do(works)
        except Exception as error:  # noqa: BLE001  a fault of `do` is all theirs
            for work in works:
                work.failure = error
        for token in {work.token for work in works}:
            tasks = [work.task for work in works if work.token is token]
            with suppress(trio.RunFinishedError):  # nobody waits any more
                token.run_sync_soon(_go_on, tasks)
        return True

    def _take(self) -> Sequence[Work]:
        """At least one; none once it is closed and all is done."""
        works = [self._waiting.get()]
        while len(works) < MOST_TOGETHER and works[-1] is not None:
            try:
                works.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        if works[-1] is None:
            self._waiting.put(None)  # for the next look
        return [work for work in works if work is not None]


def _go_on(tasks: Sequence[trio.lowlevel.Task]) -> None:
    for task in tasks:
        trio.lowlevel.reschedule(task)
