"""How far a server may run ahead of whoever takes its output."""

# What a channel begins with, and all that it has when the rest is lent. 200 servers that print to
# a worker that is busy elsewhere make 25 MiB of it.
LEAST_BYTES = 128 * 1024
# Where asyncssh sees to windows, which do not grow then; twice this may wait here.
PLAIN_BYTES = 1024 * 1024
# At a round trip of 50 ms 8 MiB let through 110 MB/s, where the ssh binary has 38.
MOST_BYTES = 8 * 1024 * 1024
HEADROOM_BYTES = 32 * 1024 * 1024
# A window that is used up in less may be what holds the server back. It takes a round trip at
# least, and few lines have one of more than half of this.
HASTE_SECONDS = 1.0
# Of a window, taken before the server hears of it: each time costs a packet.
GRANT_PART = 4


class Headroom:
    """What all channels of the worker may have together beyond their least windows."""

    def __init__(self, total_bytes: int = HEADROOM_BYTES) -> None:
        self._left = total_bytes

    def lend(self, count: int) -> bool:
        if count > self._left:
            return False
        self._left -= count
        return True

    def give_back(self, count: int) -> None:
        self._left += count


class Window:
    """What one server may have sent that was not taken yet.

    It grows while a server that is in haste waits for it, and nobody else does.
    """

    def __init__(self, headroom: Headroom) -> None:
        self._headroom = headroom
        self.size = LEAST_BYTES
        self._ungranted = 0
        self._taken = 0
        self._since = -HASTE_SECONDS

    def grant_after(self, count: int, now: float, *, is_drained: bool) -> int:
        """How much to grant now that `count` bytes more were taken, at `now` seconds."""
        self._ungranted += count
        self._taken += count
        if self._taken >= self.size and is_drained:
            if now - self._since < HASTE_SECONDS:
                self._ungranted += self._grow()
            self._since, self._taken = now, 0
        if self._ungranted < self.size // GRANT_PART:
            return 0
        granted, self._ungranted = self._ungranted, 0
        return granted

    def close(self) -> None:
        self._headroom.give_back(self.size - LEAST_BYTES)
        self.size = LEAST_BYTES

    def _grow(self) -> int:
        growth = min(self.size, MOST_BYTES - self.size)
        if not growth or not self._headroom.lend(growth):
            return 0
        self.size += growth
        return growth
