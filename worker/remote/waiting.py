"""A call of the runner that waits for what to run, before its first run and between two."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from worker.errors import ConnectionLostError, ProtocolError, RunnerMissingError, RunRefusedError
from worker.remote.attachment import Attachment, Incoming, new_nonce
from worker.remote.channel import Channel
from worker.remote.connection import Connection
from worker.remote.payload import Payload, RunMessage, run_message

# It is a matter of milliseconds; a runner that hangs is not waited for.
FORGET_SECONDS = 10.0
# Runs and what is forgotten, over one call; the runner itself ends after 1000.
MOST_SERVED = 900


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The limit counts from the script's start."""

    execution_id: str
    limit_seconds: int
    payload: Payload = field(repr=False)


class WaitingRun:
    """One call, made at `since`, over which one run after the other is started and followed."""

    def __init__(self, channel: Channel, nonce: str) -> None:
        self._channel = channel
        self._incoming = Incoming(channel, nonce)
        # What is written at once is not to come between the parts of a payload.
        self._writing = trio.Lock()
        self._served = 0
        self._is_given_up = False
        self._staged: RunRequest | None = None
        self.since = trio.current_time()

    @property
    def is_waiting(self) -> bool:
        """Whether it has no run, and may be given one."""
        is_over = self._channel.is_closed or self._is_given_up or self._served >= MOST_SERVED
        return not (is_over or self._incoming.is_busy)

    @property
    def is_being_written(self) -> bool:
        return self._writing.locked()

    def stage(self, request: RunRequest) -> None:
        """Have its server prepare a run that may come, and that `begin` starts.

        Only for a call that `is_waiting`, and on which nothing `is_being_written`.
        """
        self._staged = request
        try:
            self._channel.send_soon(self._announce(request).head)
        except ConnectionLostError:
            self.close()

    def is_ready_for(self, request: RunRequest) -> bool:
        is_over = self._channel.is_closed or self._is_given_up
        return self._staged == request and not is_over

    async def begin(self, request: RunRequest) -> Attachment:
        """Start the run, unless it was ever started, and attach to it from the beginning."""
        if self._staged is None:
            message = self._announce(request)
            data = message.data
        else:
            message = _message(request)
            data = message.rest
            self._staged = None
        try:
            async with self._writing:
                await self._channel.send_all(data)
                if not message.is_lines:
                    self._channel.send_eof()
        except ConnectionLostError:
            pass  # what the other side said before it closed tells more than this
        except trio.Cancelled:
            self.close()
            raise
        return Attachment(self._incoming)

    def _announce(self, request: RunRequest) -> RunMessage:
        message = _message(request)
        self._incoming.begin(serves_more=message.is_lines)
        self._served += 1
        return message

    async def forget(self, execution_ids: Iterable[str]) -> bool:
        """Remove runs that have ended, as the runner's verb does; whether that was done.

        A run may begin meanwhile.
        """
        status = None
        try:
            with trio.move_on_after(FORGET_SECONDS):
                async with self._writing:
                    if not self.is_waiting:  # a run was first
                        return False
                    self._served += 1
                    await self._channel.send_all(f"forget {' '.join(execution_ids)}\n".encode())
                    question = self._incoming.ask()
                status = await self._incoming.answer(question)
        except (ConnectionLostError, ProtocolError, RunnerMissingError, RunRefusedError):
            pass  # it is of no use any more
        if status is None:
            self.close()
        return status == 0

    def close(self) -> None:
        """End the call without a word, and detach from the run that it has, if it has one."""
        self._is_given_up = True
        self._channel.close()

    async def closed(self) -> None:
        """Until the server has its channel back."""
        await self._channel.wait_closed()


def _message(request: RunRequest) -> RunMessage:
    return run_message(request.execution_id, request.limit_seconds, request.payload)


async def prepare(
    connection: Connection, path: str, *, verify_sha256: str | None = None
) -> WaitingRun:
    """Have the runner take a run; its digest is compared first where there is one."""
    nonce = new_nonce()
    verify = f" {verify_sha256}" if verify_sha256 else ""
    return WaitingRun(await connection.exec(f"sh {path} run {nonce}{verify}"), nonce)


async def prepare_spare(connection: Connection, path: str) -> WaitingRun:
    """Have the runner wait for a run, with all done that a start would wait for."""
    nonce = new_nonce()
    return WaitingRun(await connection.exec(f"sh {path} spare {nonce}"), nonce)
