"""What the API is told of a job."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.captures import a_capture
from worker.dispatch.aggregate import aggregate
from worker.dispatch.plan import Plan, PlannedExecution, Server
from worker.dispatch.result import EXIT_CODES, Outcome, PhaseTimes, ServerResult
from worker.remote.frames import Stream
from worker.remote.payload import Interpreter
from worker.report import (
    MAX_COMPLETE_BYTES,
    Captures,
    clean,
    complete_entry,
    create_entry,
    fail_entry,
    release_entry,
    running_entry,
    share_bytes,
    update_entry,
)
from worker.settings import ExitCodePolicy
from worker.state.outbox import Kind

MIB = 1024 * 1024
AT = 1_795_422_166_843  # 2026-11-23T08:22:46.843Z


def a_plan(*servers: str) -> Plan:
    executions = tuple(
        PlannedExecution(f"exec_job_1_{name}_0", Server(name, f"web-{name}", None))
        for name in servers
    )
    return Plan("job_1", "12", executions, Interpreter.BASH, b"", {}, b"{}", "", 30)


def a_result(
    server: str = "1", outcome: Outcome = Outcome.SUCCESS, error: str | None = None
) -> ServerResult:
    return ServerResult(
        execution_id=f"exec_job_1_{server}_0",
        server_id=server,
        server_name=f"web-{server}",
        outcome=outcome,
        exit_code=EXIT_CODES.get(outcome, 7),
        started_at=AT,
        ended_at=AT + 5000,
        times=PhaseTimes(1000, 4000),
        error=error,
        runner="cached",
    )


def captures_of(stdout: bytes = b"", stderr: bytes = b"", limit: int = MIB) -> Captures:
    return {
        Stream.STDOUT: a_capture([stdout], limit=limit),
        Stream.STDERR: a_capture([stderr], limit=limit),
    }


def completed(
    results: list[ServerResult],
    captures: dict[str, Captures] | None = None,
    *,
    cancelled: bool = False,
    limit: int = MIB,
) -> bytes:
    job = aggregate(results, cancelled=cancelled, policy=ExitCodePolicy.SUM)
    plan = a_plan(*(result.server_id for result in results))
    entry = complete_entry(
        plan,
        job,
        results,
        captures or {result.execution_id: captures_of() for result in results},
        started_at=AT,
        ended_at=AT + 5000,
        share=share_bytes(len(results), limit),
    )
    assert (entry.kind, entry.job_id, entry.subject) == (Kind.COMPLETE, "job_1", "job_1")
    return entry.body


def test_a_final_row_is_in_the_quiet_form() -> None:
    entry = update_entry(a_plan("1"), a_result(), captures_of(b"out\n", b"err\n"))

    assert (entry.kind, entry.subject) == (Kind.UPDATE, "exec_job_1_1_0")
    assert json.loads(entry.body) == {
        "status": "COMPLETED",
        "startedAt": "2026-11-23T08:22:46.843Z",
        "exitCode": 0,
        "output": "out\n\n--- STDERR ---\nerr\n",
        "setupStartedAt": "2026-11-23T08:22:46.843Z",
        "setupCompletedAt": "2026-11-23T08:22:47.843Z",
        "executionStartedAt": "2026-11-23T08:22:47.843Z",
        "executionCompletedAt": "2026-11-23T08:22:51.843Z",
        "setupDuration": 1000,
        "executionDuration": 4000,
        "totalDuration": 5000,
        "executionMetadata": {"outcome": "success", "runner": "cached"},
    }


@pytest.mark.parametrize("outcome", Outcome)
def test_no_row_ends_the_job(outcome: Outcome) -> None:
    expected = {
        Outcome.SUCCESS: "COMPLETED",
        Outcome.TIMED_OUT: "TIMEOUT",
        Outcome.CANCELLED: "CANCELLED",
    }

    body = json.loads(update_entry(a_plan("1"), a_result("1", outcome), captures_of()).body)

    assert body["status"] == expected.get(outcome, "FAILED")
    assert "completedAt" not in body
    assert body["exitCode"] == EXIT_CODES.get(outcome, 7)


def test_the_row_of_a_run_that_goes_on_says_running() -> None:
    plan = a_plan("1")

    body = json.loads(running_entry(plan, plan.executions[0], now=AT).body)

    assert body["status"] == "running"
    assert "completedAt" not in body


@pytest.mark.parametrize(
    ("server_id", "known"),
    [("1", True), ("0042", True), ("web-1", False), ("", False), ("-1", False), ("٣", False),
     ("²", False), ("1.5", False)],
)  # fmt: skip
def test_a_row_names_its_server_only_by_a_numeric_id(server_id: str, known: bool) -> None:
    plan = a_plan(server_id)

    body = json.loads(create_entry(plan, plan.executions[0]).body)

    assert body["jobId"] == "job_1"
    assert body["serverName"] == f"web-{server_id}"
    assert body.get("serverId") == (server_id if known else None)


@given(st.binary(max_size=200))
def test_output_is_made_safe_and_otherwise_left_as_it_is(output: bytes) -> None:
    text = clean(output)

    assert "\0" not in text
    assert text.encode() or not output.replace(b"\0", b"")
    if b"\0" not in output:
        assert text == output.decode(errors="replace")


def test_the_message_is_the_last_line_of_stdout_and_the_first_of_stderr() -> None:
    results = [a_result("1"), a_result("2", Outcome.FAILED, "the script exited with 7")]
    captures = {
        results[0].execution_id: captures_of(b"fine\n"),
        results[1].execution_id: captures_of(b"no end", b"bad\n"),
    }

    body = json.loads(completed(results, captures))

    message = "PARTIAL SUCCESS: 1 of 2 servers succeeded (failed: web-2 exit 7)"
    assert body["output"] == {
        "stdout": f"[web-1] fine\n[web-2] no end\n[cronium] {message}\n",
        "stderr": f"[cronium] {message}\n[web-2] [cronium] the script exited with 7\n[web-2] bad\n",
    }
    assert body["metrics"]["message"] == message
    assert (body["status"], body["exitCode"]) == ("completed", 7)


def test_a_job_whose_servers_all_succeeded_has_only_their_own_stderr() -> None:
    captures = {"exec_job_1_1_0": captures_of(b"", b"a warning\n")}

    body = json.loads(completed([a_result()], captures))

    assert body["output"]["stderr"] == "[web-1] a warning\n"
    assert body["output"]["stdout"] == "[cronium] SUCCESS: 1 of 1 servers succeeded\n"


def test_a_job_cancelled_after_its_servers_succeeded_says_so_on_both() -> None:
    body = json.loads(completed([a_result()], cancelled=True))

    message = "[cronium] CANCELLED: 1 of 1 servers succeeded\n"
    assert body["output"] == {"stdout": message, "stderr": message}
    assert body["status"] == "cancelled"


def test_both_streams_are_there_when_nothing_was_printed() -> None:
    body = json.loads(completed([a_result("1", Outcome.TIMED_OUT)]))

    assert set(body["output"]) == {"stdout", "stderr"}
    assert all(body["output"].values())


def test_the_metrics_tell_of_every_server() -> None:
    results = [a_result("1"), a_result("2", Outcome.UNREACHABLE, "refused")]

    metrics = json.loads(completed(results))["metrics"]

    assert metrics["startTime"] == "2026-11-23T08:22:46.843Z"
    assert metrics["endTime"] == "2026-11-23T08:22:51.843Z"
    assert metrics["duration"] == 5000
    assert metrics["servers"][1] == {
        "id": "2",
        "name": "web-2",
        "executionId": "exec_job_1_2_0",
        "outcome": "unreachable",
        "exitCode": 255,
        "setupMs": 1000,
        "executionMs": 4000,
        "error": "refused",
        "runner": "cached",
    }


def test_no_body_holds_a_nul() -> None:
    result = a_result("1", Outcome.NOT_DEPLOYED, "the server said \0 and no more")
    captures = captures_of(b"a\0b\n", b"c\0d\n")

    bodies = [
        completed([result], {result.execution_id: captures}),
        update_entry(a_plan("1"), result, captures).body,
        fail_entry("job_1", "execution.environment.A\0: arrived sealed", now=AT).body,
    ]

    for body in bodies:
        assert b"\\u0000" not in body
        assert b"\0" not in body
    assert b"[web-1] ab" in bodies[0]


NASTY = {
    "escapes that take six bytes": b"\x01" * MIB,
    "invalid UTF-8": b"\xff" * MIB,
    "lines of one byte": b"\n" * MIB,
    "quotes": b'"' * MIB,
    "random bytes": random.Random(0).randbytes(MIB),  # noqa: S311  the same ones each time
}


@pytest.mark.parametrize(
    ("kind", "servers"),
    [*((kind, 1) for kind in NASTY), ("escapes that take six bytes", 20), ("quotes", 20)],
)
def test_a_complete_is_at_most_8_mib(kind: str, servers: int) -> None:
    output = NASTY[kind]
    results = [a_result(str(number), Outcome.FAILED, "x" * 500) for number in range(servers)]
    captures = captures_of(output, output)

    body = completed(results, {result.execution_id: captures for result in results})

    assert len(body) <= MAX_COMPLETE_BYTES
    assert len(body) > MAX_COMPLETE_BYTES // 4
    text: dict[str, Any] = json.loads(body)["output"]
    assert text["stdout"].endswith(")\n")
    assert text["stderr"].startswith("[cronium] FAILURE: ")


def test_a_complete_of_a_thousand_servers_has_something_of_each() -> None:
    results = [a_result(str(number), Outcome.LOST, "gone") for number in range(1000)]
    captures = captures_of(b"first\n" + b"x" * 20_000 + b"\nlast\n", limit=share_bytes(1000, MIB))

    body = completed(results, {result.execution_id: captures for result in results})

    assert len(body) <= MAX_COMPLETE_BYTES
    stdout = json.loads(body)["output"]["stdout"]
    assert all(f"[web-{number}] first\n" in stdout for number in range(1000))


def test_what_fits_is_reported_whole() -> None:
    output = b"".join(b"line %d\n" % number for number in range(50_000))
    captures = {"exec_job_1_1_0": captures_of(output)}

    stdout = json.loads(completed([a_result()], captures))["output"]["stdout"]

    assert stdout.count("[web-1] ") == 50_000
    assert stdout.replace("[web-1] ", "").encode().startswith(output)


@given(st.integers(1, 2000), st.integers(1024, 16 * MIB))
@settings(max_examples=200)
def test_the_share_of_a_stream_is_its_part_of_8_mib_and_never_over_its_limit(
    servers: int, limit: int
) -> None:
    share = share_bytes(servers, limit)

    assert 0 < share <= limit
    assert share * servers * 2 <= MAX_COMPLETE_BYTES


def test_a_release_has_a_json_body() -> None:
    entry = release_entry("job_1", "not ours")

    assert (entry.kind, entry.subject) == (Kind.RELEASE, "job_1")
    assert json.loads(entry.body) == {"message": "not ours"}


def test_a_job_that_never_ran_fails_with_exit_code_1() -> None:
    body = json.loads(fail_entry("job_1", "execution.target: names no server", now=AT).body)

    assert body == {
        "error": "execution.target: names no server",
        "exitCode": 1,
        "timestamp": "2026-11-23T08:22:46.843Z",
    }


def said(
    server: str, output: bytes | None = None, condition: bool | None = None, name: str | None = None
) -> ServerResult:
    result = replace(a_result(server), script_output=output, condition=condition)
    return result if name is None else replace(result, server_name=name)


def test_what_one_server_said_is_reported_as_it_is() -> None:
    body = completed([said("1", b'{"rate": 1.10}', condition=False)])

    assert b'"scriptOutput":{"rate": 1.10}' in body
    assert json.loads(body)["condition"] is False


def test_what_several_servers_said_is_reported_by_their_names() -> None:
    body = json.loads(completed([said("1", b"[1]"), said("2"), said("3", b"null", condition=True)]))

    assert body["scriptOutput"] == {"web-1": [1], "web-3": None}
    assert body["condition"] is True


def test_one_of_several_servers_that_said_something_is_still_named() -> None:
    assert json.loads(completed([said("1"), said("2", b"7")]))["scriptOutput"] == {"web-2": 7}


def test_two_servers_of_one_name_are_told_apart() -> None:
    results = [said("1", b"1", name="web"), said("2", b"2", name="web"), said("3", b"3", name="db")]

    body = json.loads(completed(results))

    assert body["scriptOutput"] == {"web (1)": 1, "web (2)": 2, "db": 3}


@pytest.mark.parametrize(
    ("conditions", "condition"),
    [
        ([True], True),
        ([True, True, None], True),
        ([True, False, None], False),
        ([None, False], False),
    ],
)
def test_a_condition_is_true_if_every_server_that_set_one_set_true(
    conditions: list[bool | None], condition: bool
) -> None:
    results = [said(str(number), condition=each) for number, each in enumerate(conditions)]

    assert json.loads(completed(results))["condition"] is condition


def test_what_nobody_said_is_not_reported() -> None:
    assert {"scriptOutput", "condition"} & json.loads(completed([said("1"), said("2")])).keys() == (
        set()
    )


def test_what_a_failed_script_said_is_reported_too() -> None:
    result = replace(a_result("1", Outcome.FAILED, "exited"), script_output=b"1", condition=True)

    body = json.loads(completed([result]))

    assert (body["status"], body["scriptOutput"], body["condition"]) == ("failed", 1, True)


def test_script_outputs_for_which_there_is_no_room_are_null_and_named() -> None:
    """The largest: so that as many as can be are told."""
    large = b'"' + b"x" * (MIB - 2) + b'"'
    results = [said(str(number), large) for number in range(5)] + [said("5", b'"small"')]
    captures = {result.execution_id: captures_of(b"y" * MIB) for result in results}

    body = completed(results, captures)

    assert len(body) <= MAX_COMPLETE_BYTES
    told = json.loads(body)
    assert told["scriptOutput"]["web-5"] == "small"
    assert [name for name, each in told["scriptOutput"].items() if each is None] == [
        "web-3",
        "web-4",
    ]
    note = "script output left out, over 4 MiB together: web-3, web-4"
    assert note in told["metrics"]["message"]
    assert told["output"]["stdout"].endswith(note + "\n")


@given(
    sizes=st.lists(st.integers(0, MIB - 2), min_size=1, max_size=40),
    printed=st.sampled_from([0, MIB]),
)
@settings(max_examples=10)
def test_a_complete_is_at_most_8_mib_whatever_the_scripts_said(
    sizes: list[int], printed: int
) -> None:
    results = [said(str(number), b'"' + b"x" * size + b'"') for number, size in enumerate(sizes)]
    captures = {result.execution_id: captures_of(b"\1" * printed) for result in results}

    body = completed(results, captures)

    assert len(body) <= MAX_COMPLETE_BYTES
    assert "scriptOutput" in json.loads(body)


def test_the_names_of_those_left_out_have_a_bound() -> None:
    large = b'"' + b"x" * (MIB - 2) + b'"'

    body = json.loads(completed([said(str(number), large) for number in range(40)]))

    assert body["metrics"]["message"].endswith("web-13 and 26 more")


@pytest.mark.parametrize("output", [None, b"null", b'{"rate": 1.10}', '"ü"'.encode()])
@pytest.mark.parametrize("condition", [None, True, False])
def test_a_result_that_is_kept_comes_back_whole(
    output: bytes | None, condition: bool | None
) -> None:
    result = said("1", output, condition)

    assert ServerResult.from_json(result.to_json()) == result


def test_a_result_that_was_kept_before_scripts_could_say_anything_is_read() -> None:
    kept = json.loads(said("1").to_json())
    del kept["script_output"], kept["condition"]

    assert ServerResult.from_json(json.dumps(kept).encode()) == said("1")


def test_a_result_does_not_show_what_was_said() -> None:
    assert "hunter2" not in repr(said("1", b'"hunter2"'))
