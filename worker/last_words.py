"""The ends of jobs on their way to the API, and who waits for what becomes of them."""

from collections.abc import Container, Iterable

import structlog
import trio

log = structlog.get_logger()

# Jobs that have ended and of which nothing was told since, heard or not: with so many no more are
# claimed. A busy worker would fall ever further behind, as its claims bring several jobs each.
MOST_UNTOLD = 100
# Some are void without being told of: the job is another's, or an operator has dropped its end.
UNTOLD_LOOK_SECONDS = 1.0


class LastWord:
    """What becomes of the entry that ends a job: `accepted` once `said` is set.

    `is_kept` from when that entry is in the outbox for sure, `is_tried` from when the job was told
    of once since, whatever came of it.
    """

    def __init__(self, *, is_kept: bool = False) -> None:
        self.said = trio.Event()
        self.accepted = False
        self.is_kept = is_kept
        self.is_tried = False

    def say(self, *, accepted: bool) -> None:
        self.accepted = accepted
        self.said.set()


class LastWords:
    """Those that are yet to be said, by job."""

    def __init__(self) -> None:
        self._words: dict[str, LastWord] = {}
        self._tried = trio.Event()

    def add(self, job_id: str, word: LastWord) -> None:
        self._words[job_id] = word

    def discard(self, job_id: str, word: LastWord | None = None) -> bool:
        """Have nothing more said of it, unless it is another than `word` by now; whether there was
        something to be said."""
        found = self._words.get(job_id)
        if found is None or word not in (None, found):
            return False
        del self._words[job_id]
        return True

    def say(self, job_id: str, *, accepted: bool) -> None:
        word = self._words.pop(job_id, None)
        if word is not None:
            word.say(accepted=accepted)

    def kept(self, *, but: Container[str]) -> dict[str, LastWord]:
        """Those whose entry is in the outbox, but for some jobs."""
        return {
            job_id: word
            for job_id, word in self._words.items()
            if word.is_kept and job_id not in but
        }

    def leave(self, unsaid: Iterable[tuple[str, LastWord]]) -> None:
        """An operator has dropped their entries. As after a restart, nobody waits for them."""
        for job_id, word in unsaid:
            if self.discard(job_id, word):
                log.warning("outbox_dropped", job_id=job_id)
                word.say(accepted=True)

    def note_tried(self, job_id: str) -> None:
        word = self._words.get(job_id)
        if word is not None and word.is_kept:
            word.is_tried = True
            self._tried.set()

    async def wait_abreast(self) -> None:
        """Until most of them have been told, or tried to be: an API that hears of none of them
        holds up no job."""
        is_logged = False
        while (untold := sum(not word.is_tried for word in self._words.values())) >= MOST_UNTOLD:
            self._tried = trio.Event()
            with trio.move_on_after(UNTOLD_LOOK_SECONDS) as look:
                await self._tried.wait()
            if look.cancelled_caught and not is_logged:
                log.warning("claims_wait_for_ends", untold=untold)
                is_logged = True
        if is_logged:
            log.info("claims_go_on")
