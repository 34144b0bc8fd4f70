"""That a job runs, where it was started before the API was told so."""

import trio


class Notice:
    """Of the ends of the job's executions nothing is said before it is given.

    With the last of them, if that is within `after_seconds`, it takes no call of its own.
    """

    def __init__(self, *, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._is_given = trio.Event()
        # Whether it is told by itself, now or before: then it does not go along with an end.
        self._is_due = False
        # Whether the rows of the executions are to be made with what is said of their ends.
        self.goes_along = False

    async def is_due(self) -> bool:
        """Whether it is to be told by itself, and to be `give`n then."""
        if self._after_seconds:
            with trio.move_on_after(self._after_seconds):
                await self._is_given.wait()
        self._is_due = not self._is_given.is_set()
        return self._is_due

    def give(self) -> None:
        self._is_given.set()

    async def wait_given(self, *, is_last: bool) -> None:
        """For an execution that has ended."""
        if is_last and not self._is_due:
            self.goes_along = True
            self.give()
        await self._is_given.wait()
