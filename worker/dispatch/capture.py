"""One stream of one execution: its bytes in the spool, and when they came in memory."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from worker.dispatch.output import MAX_LINE_BYTES, Block
from worker.state.spool import Spool

# Below this many it is not worth looking for ones to drop.
FEW_ARRIVALS = 64


class Arrivals:
    """When which bytes of a stream came, as growing order numbers; known of the first and the last
    `limit` / 2 bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Up to which offset the bytes came at which order.
        self._ends = array("Q")
        self._orders = array("Q")
        self._last_order = -1
        self._crowded = FEW_ARRIVALS

    def note(self, order: int, end: int) -> None:
        """The bytes up to the offset `end` came as `order`."""
        if self._ends and order == self._last_order + 1:
            # Nothing came in between, so they may share a number.
            self._ends[-1] = end
        else:
            self._ends.append(end)
            self._orders.append(order)
        self._last_order = order
        if len(self._ends) > self._crowded:
            self._drop_middle(end)
            self._crowded = max(FEW_ARRIVALS, 2 * len(self._ends))

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Order, start and end of the pieces that make up that range."""
        at = bisect_right(self._ends, start)
        while start < end and at < len(self._ends):
            piece_end = min(self._ends[at], end)
            yield self._orders[at], start, piece_end
            start, at = piece_end, at + 1
        if start < end:  # a last line that has not ended yet
            yield (self._orders[-1] if self._orders else 0), start, end

    def _drop_middle(self, end: int) -> None:
        head, tail = self._limit - self._limit // 2, end - self._limit // 2
        # The one that the head ends in, and the one that the tail begins in, are wanted.
        first = min(bisect_right(self._ends, head) + 1, len(self._ends))
        last = max(bisect_right(self._ends, tail), first)
        del self._ends[first:last], self._orders[first:last]


class Capture:
    """`share` is how much of the stream the whole job's output has room for."""

    def __init__(self, spool: Spool, share: int) -> None:
        self._spool = spool
        self._arrivals = Arrivals(share)
        self._noted = 0

    @property
    def exists(self) -> bool:
        """Whether the spool is there: from the first that was received on."""
        return self._spool.exists

    @property
    def received(self) -> int:
        return self._spool.received

    @property
    def source(self) -> int:
        """The offset in the stream that what is kept has come to."""
        return self._spool.source

    @property
    def begins_line(self) -> bool:
        """Whether nothing is kept, or a line's end last."""
        return self.received == 0 or self._spool.read(*self._last(1)) == b"\n"

    def write(self, data: bytes, *, source: int | None = None) -> None:
        """Keep the next bytes, perhaps none; they stand for the stream up to `source`.

        Raises OSError where there is no room for them.
        """
        self._spool.write(data, source=source)

    def note(self, order: int, count: int) -> None:
        """The next `count` bytes, of those written, were whole lines and came as `order`."""
        self._noted += count
        self._arrivals.note(order, self._noted)

    def take_up(self, order: int) -> bytes:
        """Go on from what an earlier worker wrote; the beginning of a line that has no end yet."""
        received = self.received
        kept = received if received <= self._spool.limit else self._spool.limit // 2
        last = self._spool.read(*self._last(min(kept, MAX_LINE_BYTES - 1)))
        rest = last[last.rfind(b"\n") + 1 :]
        self.note(order, received - len(rest))
        return rest

    def content(self) -> bytes:
        """What is kept of the stream; a line between the halves says what is not."""
        return b"".join(block for _, block in self.blocks(self._spool.limit))

    def blocks(self, limit: int) -> list[Block]:
        """As `content`, under the smaller `limit`, and each piece with its order number."""
        received = self.received
        limit = min(limit, self._spool.limit)
        if received <= limit:
            return list(self._pieces(0, received))
        head = list(self._pieces(0, limit - limit // 2))
        marker = b"\n[cronium] ... %d bytes left out ...\n" % (received - limit)
        between = head[-1][0] if head else 0
        return [*head, (between, marker), *self._pieces(*self._last(limit // 2))]

    def close(self) -> None:
        """Nothing is written any more; what is kept can still be read."""
        self._spool.close()

    def _last(self, count: int) -> tuple[int, int]:
        return self.received - count, self.received

    def _pieces(self, start: int, end: int) -> Iterator[Block]:
        data = self._spool.read(start, end)
        for order, piece_start, piece_end in self._arrivals.between(start, end):
            yield order, data[piece_start - start : piece_end - start]
