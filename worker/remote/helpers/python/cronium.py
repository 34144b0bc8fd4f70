"""What a script may ask of Cronium.

A request is a file in CRONIUM_CALLS, and so is its answer: the runner carries them. For every
Python from 3.6 on.
"""

import contextlib
import itertools
import json
import os
import signal
import time

# With its header a request fits into the worker's frames.
_MOST_BYTES = 1024 * 1024 - 1024
# Between two looks for the answer: a part of the time waited so far, within these.
_SHARE = 1 / 8
_SHORTEST_SECONDS = 0.002
_LONGEST_SECONDS = 0.25

# What was said is kept, to be told to whoever attaches later.
_SAID = {"output": "output.said", "setCondition": "condition.said"}

_numbers = itertools.count()


class CroniumError(RuntimeError):
    """Cronium refused, for this reason."""


def input():
    """The input of this run."""
    return _ask("input")


def event():
    """What this is a run of: id, name, and where it runs."""
    return _ask("event")


def output(data=None):
    """Report `data`, which JSON can express, as what this run has to show; the last one counts."""
    _ask("output", data=data)


def get_variable(key):
    """The variable's value; CroniumError if there is none."""
    return _ask("getVariable", key=key)


def set_variable(key, value):
    _ask("setVariable", key=key, value=value)


def set_condition(condition):
    """Say whether what depends on this run is to happen."""
    # A text is judged by the worker: "false" is not true.
    _ask("setCondition", condition=condition if isinstance(condition, str) else bool(condition))


def execute_tool_action(tool, action, config=None):
    """Have a tool do something; what it answers."""
    return _ask("executeToolAction", tool=tool, action=action, config=config or {})


getVariable = get_variable
setVariable = set_variable
setCondition = set_condition
executeToolAction = execute_tool_action


def _ask(call, **fields):
    folder = os.environ.get("CRONIUM_CALLS", "")
    text = json.dumps(dict(fields, call=call, form="json"), ensure_ascii=False, allow_nan=False)
    request = text.encode("utf-8", "surrogatepass")
    if len(request) > _MOST_BYTES:
        raise CroniumError("a call may have no more than 1 MiB")
    name = f"{os.getpid()}.{next(_numbers)}.{os.urandom(4).hex()}"
    path = os.path.join(folder, name)
    try:
        _put(path, request)
        _wake_attacher(folder)
        status, body = _wait(folder, path)
        if status == b"ok" and call in _SAID:
            os.replace(path + ".req", os.path.join(folder, _SAID[call]))
    finally:
        # Also when we are interrupted: nobody is to answer then.
        for ending in (".new", ".req", ".ans"):
            _remove(path + ending)
    answer = json.loads(body.decode("utf-8"))
    if status != b"ok":
        raise CroniumError(answer)
    return answer


def _put(path, request):
    if not os.path.isabs(path):
        raise CroniumError("this was not started by Cronium: there is no CRONIUM_CALLS")
    try:
        with open(path + ".new", "wb") as file:
            file.write(request)
        os.rename(path + ".new", path + ".req")
    except OSError as error:
        raise CroniumError(f"nothing can be asked from here (CRONIUM_CALLS): {error}") from error


def _wake_attacher(folder):
    """A hint; without it the call is found a little later."""
    path = os.path.join(folder, os.pardir, "attacher")
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        os.kill(int(file.read().partition(".")[0]), signal.SIGURG)


def _has_ended(folder):
    with contextlib.suppress(OSError):
        return any(name.startswith("exit.") for name in os.listdir(os.path.join(folder, os.pardir)))
    return False


def _wait(folder, path):
    waited = 0
    while not os.path.exists(path + ".ans"):
        if _has_ended(folder) or not os.path.exists(path + ".req"):
            raise CroniumError("the run has ended")
        pause = min(max(waited * _SHARE, _SHORTEST_SECONDS), _LONGEST_SECONDS)
        time.sleep(pause)
        waited += pause
    with open(path + ".ans", "rb") as file:
        status, _, body = file.read().partition(b"\n")
    return status, body


def _remove(path):
    with contextlib.suppress(OSError):
        os.remove(path)
