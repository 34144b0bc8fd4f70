"""How far a server may run ahead, and who gets how much of the worker's memory for it."""

from hypothesis import given
from hypothesis import strategies as st

from worker.remote.windows import LEAST_BYTES, MOST_BYTES, Headroom, Window

Taken = tuple[int, float, bool]

takings = st.lists(
    st.tuples(st.integers(1, 2 * LEAST_BYTES), st.floats(0, 3), st.booleans()), max_size=200
)


def printed(window: Window, count: int, *, piece_seconds: float, is_drained: bool = True) -> None:
    """As if a server printed so much, as fast as it may."""
    for number in range(count // LEAST_BYTES):
        window.grant_after(LEAST_BYTES, number * piece_seconds, is_drained=is_drained)


@given(st.lists(takings, min_size=1, max_size=5))
def test_never_is_more_under_way_than_what_was_lent(channels: list[list[Taken]]) -> None:
    headroom = Headroom(4 * LEAST_BYTES)
    windows = [Window(headroom) for _ in channels]

    for window, taken in zip(windows, channels, strict=True):
        granted = took = 0
        now = 0.0
        for count, pause, is_drained in taken:
            now += pause
            took += count
            granted += window.grant_after(count, now, is_drained=is_drained)
            assert granted <= took + window.size - LEAST_BYTES
            assert granted >= took + window.size - LEAST_BYTES - window.size // 4

    assert sum(window.size - LEAST_BYTES for window in windows) <= 4 * LEAST_BYTES


def test_a_window_grows_for_a_server_in_haste_and_goes_back_when_it_ends() -> None:
    headroom = Headroom(MOST_BYTES)
    one, other = Window(headroom), Window(headroom)

    printed(one, 10 * MOST_BYTES, piece_seconds=0.001)
    printed(other, 10 * MOST_BYTES, piece_seconds=0.001)
    sizes = one.size, other.size
    one.close()
    printed(other, 10 * MOST_BYTES, piece_seconds=0.001)

    assert sizes == (MOST_BYTES, LEAST_BYTES * 2)
    assert other.size == MOST_BYTES


def test_a_window_stays_for_a_server_that_takes_its_time_or_is_waited_for() -> None:
    slow, full = Window(Headroom()), Window(Headroom())

    printed(slow, 10 * MOST_BYTES, piece_seconds=2)
    printed(full, 10 * MOST_BYTES, piece_seconds=0.001, is_drained=False)

    assert (slow.size, full.size) == (LEAST_BYTES, LEAST_BYTES)
