"""Something that may happen, once, and what is then to be done at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial


class Trigger:
    """Instead of an event that each execution would have a task wait for, mostly in vain: a task
    costs 0.1 ms, and a warm execution takes some 5."""

    def __init__(self) -> None:
        self._is_set = False
        self._actions: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            for action in tuple(self._actions):
                action()

    @contextmanager
    def armed(self, action: Callable[[], object]) -> Iterator[None]:
        """Within this, `action` is done when it happens, or now if it has; in the present context,
        whoever sets it off."""
        bound = partial(copy_context().run, action)
        self._actions.append(bound)
        try:
            if self._is_set:
                action()
            yield
        finally:
            self._actions.remove(bound)
