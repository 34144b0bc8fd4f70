"""The error tree: each class is a state an operator can act on."""


class WorkerError(Exception):
    """The root of every error the worker raises on purpose; its text is fit for an operator."""


class SettingsError(WorkerError):
    """The environment does not hold a usable configuration; every fault is listed."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class StateError(WorkerError):
    """The state directory or the state file cannot be used."""


class EarlierStateError(StateError):
    """The state file is of an earlier release, and a worker of this one has yet to migrate it."""


class StateLockedError(StateError):
    """Another worker holds the state directory."""


class SealedValueError(WorkerError):
    """A sealed value cannot be opened."""


class ProtocolError(WorkerError):
    """The other side said something that its protocol does not allow."""


class JobError(WorkerError):
    """A claimed job cannot be run as it stands; the text names the field."""


class QueueError(WorkerError):
    """The queue API did not do what was asked."""


class QueueUnavailableError(QueueError):
    """The queue API did not answer, or answered that it cannot just now; asking again may help.

    `status` is None when there was no answer: then the call may have taken effect. Not before
    `after_seconds`, if the API says so.
    """

    def __init__(self, message: str, status: int | None = None, after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.after_seconds = after_seconds


class QueueRefusedError(QueueError):
    """The queue API understood and refused; asking again will not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the queue API refused with {status}: {message}")
        self.status = status


class RuntimeApiError(WorkerError):
    """The runtime API did not do what a script asked for."""


class RuntimeUnavailableError(RuntimeApiError):
    """The runtime API did not answer, or answered that it cannot just now; as with the queue's, but
    for when to ask again: a script's call cannot wait for long."""

    def __init__(self, message: str, status: int | None = None, _after_seconds: float = 0) -> None:
        super().__init__(message)
        self.status = status


class RuntimeRefusedError(RuntimeApiError):
    """The runtime API understood and refused; asking again will not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the runtime API refused with {status}: {message}")
        self.status = status


class HelperCallError(WorkerError):
    """What a script asked for cannot be done; the text is for the script."""


class SshError(WorkerError):
    """A server cannot be used over SSH."""


class ConnectError(SshError):
    """No SSH connection could be made; trying again may help."""


class PassingConnectError(ConnectError):
    """The server refused or closed the connection, as an sshd does that is busy or restarted; or
    nobody could say where it is, as while a resolver is restarted."""


class AuthenticationError(SshError):
    """The server refused the credential, or the credential cannot be read; never tried again."""


class PassphraseError(AuthenticationError):
    """The private key needs a passphrase, or another one than it was given."""


class HostKeyError(SshError):
    """The server's host key is not the one expected."""


class ConnectionLostError(SshError):
    """The SSH connection ended while it was in use."""


class NoChannelError(ConnectionLostError):
    """This connection gives no further channel; another one may."""


class RunnerMissingError(SshError):
    """There is no usable runner at the path that was called."""


class DeployError(SshError):
    """The runner could not be put on the server."""


class SupersededError(SshError):
    """Somebody else has attached to the run; the newest wins."""


class RunForgottenError(SshError):
    """The run was reported and forgotten before; it is not started a second time."""


class RunRefusedError(SshError):
    """The runner was there and refused what was asked of it."""

    def __init__(self, status: int | None, reason: str) -> None:
        super().__init__(f"the runner ended with status {status}: {reason}"[:500])
        self.status = status


def first_of(error: BaseException) -> BaseException:
    """Of a nursery within nurseries, what came up there."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
