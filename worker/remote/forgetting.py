"""Runs that are to be forgotten, those on one server together."""

from collections.abc import Awaitable, Callable, Sequence

import trio

from worker.errors import RunRefusedError
from worker.remote.target import Target

# The ids stand on a command line.
MOST_AT_ONCE = 100

Forget = Callable[[Sequence[str]], Awaitable[None]]


class _Gathering:
    def __init__(self) -> None:
        self.turn = trio.Lock()
        self.ids: dict[str, None] = {}


class Forgetting:
    """While one call is on its way to a server, the runs that end there wait for the next.

    A call costs the server some ten processes, however many runs it forgets.
    """

    def __init__(self) -> None:
        self._gatherings: dict[Target, _Gathering] = {}

    async def forget(self, target: Target, execution_id: str, forget: Forget) -> None:
        """Have that run forgotten, by `forget` or that of another who waits.

        Raises what `forget` does, of its own run alone.
        """
        gathering = self._gatherings.setdefault(target, _Gathering())
        gathering.ids[execution_id] = None
        try:
            async with gathering.turn:
                if execution_id in gathering.ids:  # else it went with another's
                    await self._forget_all(gathering, execution_id, forget)
        finally:
            gathering.ids.pop(execution_id, None)
            if not gathering.ids and self._gatherings.get(target) is gathering:
                del self._gatherings[target]

    async def _forget_all(self, gathering: _Gathering, execution_id: str, forget: Forget) -> None:
        others = [each for each in gathering.ids if each != execution_id]
        together = (execution_id, *others[: MOST_AT_ONCE - 1])
        try:
            await forget(together)
        except RunRefusedError:
            if len(together) == 1:
                raise
            # One of them goes on; which, its own call tells.
            await forget((execution_id,))
            together = (execution_id,)
        for each in together:
            gathering.ids.pop(each, None)
