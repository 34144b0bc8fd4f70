"""What the bearer of an execution's token may have: every method is one transaction."""

from sqlite3 import Connection
from typing import Any

from worker.clock import rfc3339
from worker.database import Database
from worker.errors import WorkerError
from worker.queue_server import executions, variables
from worker.queue_server.model import Job
from worker.queue_server.rows import UnknownNameError, load_execution, load_job
from worker.queue_server.tokens import Claims
from worker.queue_server.transform import Json


class NotGrantedError(WorkerError):
    """The token is genuine, but what it speaks for is not there, or is over."""


class Granted:
    """Every method raises NotGrantedError, and takes the user from the job, never from the caller.

    A job that is over grants nothing: nobody is left to ask, so a token that is used then has
    leaked.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def input(self, claims: Claims) -> Any:  # noqa: ANN401 the event's, any JSON
        with self._database.transaction() as tx:
            return _granted_job(tx, claims).payload["input"]

    def context(self, claims: Claims) -> Json:
        with self._database.transaction() as tx:
            job = _granted_job(tx, claims)
            return executions.context_within(tx, claims.execution_id, job)

    def variable(self, claims: Claims, key: str) -> tuple[str, int]:
        """The value, and when it was put. Raises UnknownNameError."""
        with self._database.transaction() as tx:
            return variables.read(tx, _granted_job(tx, claims).user_id, key)

    def put_variable(self, claims: Claims, key: str, value: str, now: int) -> None:
        with self._database.transaction() as tx:
            variables.put(tx, _granted_job(tx, claims).user_id, key, value, now)

    def add_output(self, claims: Claims, data: object, now: int) -> None:
        """Raises UnknownNameError if no worker has created the execution."""
        with self._database.transaction() as tx:
            _granted_job(tx, claims)
            executions.add_output(tx, claims.execution_id, data, rfc3339(now), now)

    def add_condition(self, claims: Claims, condition: bool, now: int) -> None:
        """Raises UnknownNameError if no worker has created the execution."""
        with self._database.transaction() as tx:
            _granted_job(tx, claims)
            executions.add_condition(tx, claims.execution_id, condition, now)


def _granted_job(tx: Connection, claims: Claims) -> Job:
    try:
        job = load_job(tx, claims.job_id)
    except UnknownNameError as error:
        # Not a 404: that would read as a variable that is not there.
        raise NotGrantedError("the token's job is not one of this queue") from error
    if (claims.user_id, claims.event_id) != (job.user_id, str(job.event_id)):
        raise NotGrantedError("the token's user or event is not its job's")
    if job.status.is_final:
        raise NotGrantedError(f"the token's job is over: {job.status}")
    _check_execution(tx, claims.execution_id, job)
    return job


def _check_execution(tx: Connection, execution_id: str, job: Job) -> None:
    try:
        execution = load_execution(tx, execution_id)
    except UnknownNameError as error:
        # Workers create executions beside what they do, so a script can be the first to speak
        # of its own; then the name says whose it is.
        if not execution_id.startswith(f"exec_{job.id}_"):
            raise NotGrantedError("the token's execution is not one of its job") from error
        return
    if execution.job_id != job.id:
        raise NotGrantedError("the token's execution is not one of its job")
    if execution.is_over:
        raise NotGrantedError(f"the token's execution is over: {execution.status}")
