"""From a claim's bytes to what is to be done."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract_files import FOLDER, claimed_jobs
from worker.api.wire import BadJob, JobBody, decode_claim, decode_job, encode
from worker.dispatch.plan import Plan, execution_id, plan_job
from worker.errors import JobError, ProtocolError
from worker.remote.given_keys import GivenKey
from worker.remote.payload import Interpreter
from worker.sealing import SealingKey
from worker.secret import Secret

KEY = SealingKey(Secret("5a" * 32))
FINGERPRINT = "SHA256:" + "A" * 43
DAY = 86400
INTERPRETERS = {
    "BASH": Interpreter.BASH,
    "PYTHON": Interpreter.PYTHON,
    "NODEJS": Interpreter.NODE,
}
RECORDED = [
    pytest.param(job, id=f"{path.stem.split('_')[0]}-{job['id'][-6:]}-{number}")
    for path in sorted(FOLDER.glob("*.json"))
    for number, job in enumerate(claimed_jobs(path.stem))
    if job["type"] != "container"
]


def a_server(server_id: object = "1", **changes: object) -> dict[str, Any]:
    return {
        "id": server_id,
        "name": f"web-{server_id}",
        "host": "web.example.com",
        "port": 22,
        "username": "deploy",
        "privateKey": "KEY",
        **changes,
    }


def a_job(*servers: dict[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
    """A claimed job; `execution`, `script` and `metadata` in `changes` are merged in."""
    listed = servers or (a_server(),)
    script = {"type": "BASH", "content": "echo hi", "workingDirectory": ""}
    execution = {
        "environment": {},
        "timeout": 30_000_000_000,
        "inputData": {},
        "target": {"type": "server", "serverId": listed[0].get("id"), "serverDetails": listed[0]},
        "script": script | changes.pop("script", {}),
        **changes.pop("execution", {}),
    }
    metadata = {"eventId": "12", **changes.pop("metadata", {})}
    if len(listed) > 1:
        metadata["servers"] = listed
    job = {"id": "job_1", "type": "ssh", "attempts": 0, "execution": execution}
    return {**job, "metadata": metadata, **changes}


def decoded(*jobs: object) -> tuple[JobBody | BadJob, ...]:
    return decode_claim(json.dumps({"jobs": jobs, "count": len(jobs)}).encode())


def planned(job: dict[str, Any], *, key: SealingKey | None = KEY, max_seconds: float = DAY) -> Plan:
    (body,) = decoded(job)
    assert isinstance(body, JobBody), body
    return plan_job(body, sealing_key=key, max_execution_seconds=max_seconds)


@pytest.mark.parametrize("recorded", RECORDED)
def test_a_recorded_claim_becomes_the_plan_that_it_implies(recorded: dict[str, Any]) -> None:
    execution, metadata = recorded["execution"], recorded["metadata"]
    details = execution["target"].get("serverDetails")
    listed = metadata.get("servers") or ([details] if details else [])
    if execution["environment"]:
        execution = {**execution, "environment": {"PLAIN": KEY.seal("hello")}}

    plan = planned({**recorded, "execution": execution})

    assert plan.job_id == recorded["id"]
    assert plan.event_id == str(metadata["eventId"])
    assert plan.limit_seconds == execution["timeout"] // 10**9
    assert plan.interpreter is INTERPRETERS[execution["script"]["type"]]
    assert plan.script == execution["script"]["content"].encode()
    assert json.loads(plan.input) == execution["inputData"]
    assert plan.environment == ({"PLAIN": "hello"} if execution["environment"] else {})
    servers = [each.server for each in plan.executions]
    if not listed:
        (server,) = servers
        assert server.id == execution["target"]["serverId"]
        assert server.fault
        return
    assert [server.id for server in servers] == [entry["id"] for entry in listed]
    assert [server.name for server in servers] == [entry["name"] for entry in listed]
    for server, entry in zip(servers, listed, strict=True):
        usable = "privateKey" in entry or "password" in entry
        assert (server.target is not None) == usable
        assert (server.fault is None) == usable
        if server.target is not None:
            credential = server.target.credential
            assert (server.target.host, server.target.port) == (entry["host"], entry["port"])
            assert server.target.user == entry["username"]
            assert credential.private_key == hidden(entry.get("privateKey"))
            assert credential.password == hidden(entry.get("password"))


def test_the_recordings_are_many() -> None:
    assert len(RECORDED) > 100


@pytest.mark.parametrize("scenario", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_a_recorded_answer_decodes_as_it_is(scenario: str) -> None:
    recorded = claimed_jobs(scenario)

    jobs = decoded(*recorded)

    assert [job.id for job in jobs] == [job["id"] for job in recorded]
    assert all(isinstance(job, JobBody) for job in jobs)


def test_a_container_job_decodes_and_its_type_is_left_to_the_intake() -> None:
    recorded = next(job for job in claimed_jobs("s18_job_shapes") if job["type"] == "container")

    (job,) = decoded(recorded)

    assert isinstance(job, JobBody)
    assert job.type == "container"


def test_one_server_is_the_same_plan_in_its_single_and_its_listed_form() -> None:
    single = a_job(a_server("7"))
    listed = a_job(a_server("7"), metadata={"servers": [a_server("7")], "multiServer": True})

    assert planned(single) == planned(listed)


def test_the_list_wins_over_a_target_that_is_not_in_it() -> None:
    job = a_job(a_server("1"), metadata={"servers": [a_server("2"), a_server("3")]})

    assert ids(planned(job)) == ["2", "3"]


def test_a_server_listed_twice_is_one_at_its_first_place() -> None:
    job = a_job(a_server("3"), a_server("1"), a_server(3, name="again"), a_server("2"))

    plan = planned(job)

    assert ids(plan) == ["3", "1", "2"]
    assert plan.executions[0].server.name == "web-3"


@pytest.mark.parametrize("fields", [{}, {"privateKey": ""}, {"password": None}])
def test_a_server_without_a_credential_is_counted_with_its_fault(fields: dict[str, Any]) -> None:
    bare = {name: value for name, value in a_server("2").items() if name != "privateKey"}

    plan = planned(a_job(a_server("1"), {**bare, **fields}))

    assert ids(plan) == ["1", "2"]
    assert fault_of(plan, 1) == "server entry: it has neither a private key nor a password"
    assert plan.executions[1].server.target is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host": ""}, "host"),
        ({"host": None}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "web..example.com"}, "host: 'web..example.com' is not a host"),
        ({"host": "a" * 64}, "host"),
        ({"host": "é." * 127}, "host"),
        ({"host": "a\nb"}, "host"),
        ({"host": "a\x1bb"}, "host"),
        ({"port": 0}, "port"),
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"port": 10**30}, "port"),
        ({"port": "22"}, "port"),
        ({"port": 22.5}, "port"),
        ({"port": None}, "port"),
        ({"username": ""}, "username"),
        ({"username": None}, "username"),
        ({"username": "a\nb"}, "username"),
        ({"username": 7}, "username"),
        ({"privateKey": 7}, "privateKey"),
        ({"hostKey": 7}, "hostKey"),
        ({"hostKey": " "}, "hostKey: holds no key"),
        ({"hostKey": "hunter2"}, "hostKey: line 1: neither"),
        ({"hostKey": "ssh-ed25519 AAAA"}, "hostKey: line 1: the public key is damaged"),
        ({"hostKey": f"{FINGERPRINT}\nSHA256:short"}, "hostKey: line 2: neither"),
        ({"id": True}, "id"),
    ],
)
def test_a_server_entry_that_cannot_be_used_is_a_fault_that_names_the_field(
    changes: dict[str, Any], field: str
) -> None:
    plan = planned(a_job(a_server("1"), {**a_server("2"), **changes}))

    assert len(plan.executions) == 2
    assert field in (fault_of(plan, 1) or "")
    assert "KEY" not in (fault_of(plan, 1) or "")


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, ()),
        ({"hostKey": None}, ()),
        ({"hostKey": ""}, ()),
        ({"hostKey": f"{FINGERPRINT}\n"}, (GivenKey(FINGERPRINT),)),
    ],
)
def test_a_server_entry_may_say_what_its_host_key_has_to_be(
    changes: dict[str, Any], keys: tuple[GivenKey, ...]
) -> None:
    plan = planned(a_job(a_server("1", **changes)))

    target = plan.executions[0].server.target
    assert target is not None
    assert target.host_keys == keys


@pytest.mark.parametrize("entry", [None, [], 7, "x", {}, {"name": "nameless"}, {"id": ""}])
def test_entries_without_an_id_are_counted_one_by_one(entry: object) -> None:
    job = a_job(a_server("1"), metadata={"servers": [a_server("1"), entry, entry]})

    plan = planned(job)

    assert ids(plan) == ["1", "entry-1", "entry-2"]
    assert fault_of(plan, 1)


@pytest.mark.parametrize("details", [{}, {"serverDetails": None}])
def test_a_target_without_details_is_a_server_with_a_fault(details: dict[str, Any]) -> None:
    job = a_job(execution={"target": {"type": "server", "serverId": "9", **details}})

    plan = planned(job)

    assert ids(plan) == ["9"]
    assert fault_of(plan, 0) == "the claim has no details of this server"


def test_a_job_that_names_no_server_is_refused() -> None:
    with pytest.raises(JobError, match=r"execution\.target"):
        planned(a_job(execution={"target": {"type": "server"}}))


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        (30, 30),
        (30.4, 30),
        (0.2, 1),
        (100_000_000, DAY),
        (100_000_001, 1),
        (2_000_000_000, 2),
        (30_000_000_000, 30),
        (30_000_000_000.0, 30),
        (3_600 * 10**9, 3600),
        (90_000 * 10**9, DAY),
        (2**63 - 1, DAY),
        (None, 3600),
    ],
)
def test_a_limit_is_nanoseconds_above_10_to_the_8_and_seconds_below(
    timeout: float | None, seconds: int
) -> None:
    assert planned(a_job(execution={"timeout": timeout})).limit_seconds == seconds


def test_a_limit_is_capped_by_the_workers_own() -> None:
    assert planned(a_job(), max_seconds=10).limit_seconds == 10


@pytest.mark.parametrize(
    ("written", "interpreter"),
    [
        ("BASH", Interpreter.BASH),
        ("bash", Interpreter.BASH),
        ("Sh", Interpreter.BASH),
        ("SHELL", Interpreter.BASH),
        ("python", Interpreter.PYTHON),
        ("NODE", Interpreter.NODE),
        ("nodejs", Interpreter.NODE),
        ("NODE_JS", Interpreter.NODE),
    ],
)
def test_a_script_type_may_be_in_any_case(written: str, interpreter: Interpreter) -> None:
    assert planned(a_job(script={"type": written})).interpreter is interpreter


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"script": {"type": "PERL"}}, r"execution\.script\.type: 'PERL'"),
        ({"script": {"workingDirectory": "/a\nb"}}, r"execution\.script\.workingDirectory"),
        ({"script": {"workingDirectory": "/a\0b"}}, r"execution\.script\.workingDirectory"),
        ({"type": "http"}, r"type: 'http'"),
        ({"execution": {"environment": {"A B": "x"}}}, r"environment: 'A B'"),
        ({"execution": {"environment": {"1A": "x"}}}, r"environment: '1A'"),
        ({"execution": {"environment": {"": "x"}}}, r"environment: ''"),
        ({"execution": {"environment": {"A\n": "x"}}}, r"environment: 'A\\n'"),
        ({"execution": {"environment": {"A=B": "x"}}}, r"environment: 'A=B'"),
        ({"execution": {"environment": {"Ä": "x"}}}, r"environment: 'Ä'"),
        ({"execution": {"environment": {"UID": "0"}}}, r"environment: UID"),
        ({"execution": {"environment": {"A": "x\0y"}}}, r"environment: the value of A"),
    ],
)
def test_a_job_that_cannot_be_run_names_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(JobError, match=named):
        planned(a_job(**changes))


def test_sealed_environment_values_are_opened() -> None:
    values = {"A": "hello", "LONG": "x" * 1000, "LINES": "a\nb'c\"$d", "UNICODE": "žluť"}
    sealed = {name: KEY.seal(value) for name, value in values.items()}

    assert planned(a_job(execution={"environment": sealed})).environment == values


def test_the_recorded_sealed_values_need_the_key_and_the_entry_is_named() -> None:
    recorded = claimed_jobs("s17_env_and_credentials")[0]
    assert recorded["execution"]["environment"]

    with pytest.raises(JobError, match=r"execution\.environment\.PLAIN.*CRONIUM_ENCRYPTION_KEY"):
        planned(recorded, key=None)
    with pytest.raises(JobError, match=r"execution\.environment\.PLAIN"):
        planned(recorded, key=KEY)


@pytest.mark.parametrize(
    "plain", ["", "hello", "/usr/bin:/bin", "a=b", "0123456789abcdef" * 4, "x" * 41, "short+/=="]
)
def test_values_that_cannot_be_sealed_are_plain(plain: str) -> None:
    plan = planned(a_job(execution={"environment": {"A": plain}}), key=None)

    assert plan.environment == {"A": plain}


def test_a_queue_that_says_so_sends_plain_values() -> None:
    looks_sealed = KEY.seal("hello")
    execution = {"environment": {"A": looks_sealed}, "environmentSealed": False}

    assert planned(a_job(execution=execution), key=None).environment == {"A": looks_sealed}


def test_the_script_is_told_where_it_runs_and_a_job_cannot_say_otherwise() -> None:
    plan = planned(
        a_job(a_server("7"), execution={"environment": {"CRONIUM_SERVER_ID": "1", "A": "x"}})
    )

    assert plan.environment_of(plan.executions[0]) == {
        "A": "x",
        "CRONIUM_JOB_ID": "job_1",
        "CRONIUM_EXECUTION_ID": "exec_job_1_7_0",
        "CRONIUM_EVENT_ID": "12",
        "CRONIUM_SERVER_ID": "7",
        "CRONIUM_SERVER_NAME": "web-7",
    }


def test_a_plan_has_what_a_script_may_ask_of_its_event() -> None:
    metadata = {"eventName": "nightly", "userId": 7, "eventVersion": 3, "triggeredBy": "schedule"}

    plan = planned(a_job(attempts=2, metadata=metadata))
    bare = planned(a_job(metadata={"eventId": None}))

    assert (plan.event_id, plan.event_name, plan.event_version) == ("12", "nightly", 3)
    assert (plan.user_id, plan.triggered_by, plan.attempts) == ("7", "schedule", 2)
    assert (bare.event_id, bare.event_name, bare.event_version) == ("", "", None)
    assert (bare.user_id, bare.triggered_by, bare.attempts) == ("", None, 0)


def test_a_servers_name_is_fit_for_a_lines_prefix() -> None:
    plan = planned(a_job(a_server(name="a\x1b[31m\nb" + "c" * 200)))

    (execution,) = plan.executions
    assert execution.server.name.startswith("a?[31m?bccc")
    assert len(execution.server.name) == 100


def test_an_execution_is_named_for_its_job_its_server_and_the_attempt() -> None:
    plan = planned(a_job(a_server("1"), a_server("2"), attempts=3))

    assert [each.id for each in plan.executions] == ["exec_job_1_1_3", "exec_job_1_2_3"]


server_ids = st.one_of(st.text(min_size=1, max_size=300), st.integers().map(str))
job_ids = st.from_regex(r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\Z")
attempts = st.integers(0, 999_999_999)


@given(job_ids, server_ids, attempts)
def test_an_execution_id_is_short_and_safe_and_always_the_same(
    job_id: str, server_id: str, attempt: int
) -> None:
    made = execution_id(job_id, server_id, attempt)

    assert re.fullmatch(r"[A-Za-z0-9._-]{1,100}", made)
    assert made == execution_id(job_id, server_id, attempt)
    assert made.startswith("exec_")


@given(job_ids, st.sets(server_ids, min_size=2, max_size=5), attempts)
def test_servers_of_one_job_have_different_execution_ids(
    job_id: str, servers: set[str], attempt: int
) -> None:
    assert len({execution_id(job_id, each, attempt) for each in servers}) == len(servers)


@pytest.mark.parametrize(
    "bad", ["", "a/b", "a b", "job_1\n", "../x", ".", "..", "x" * 201, "ä", 7, None]
)
def test_a_job_without_a_usable_id_has_none(bad: object) -> None:
    (job,) = decoded(a_job(id=bad))

    assert isinstance(job, BadJob)
    assert job.id is None
    assert "`$.id`" in job.fault


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"attempts": -1}, "$.attempts"),
        ({"attempts": 10**9}, "$.attempts"),
        ({"attempts": "1"}, "$.attempts"),
        ({"execution": {"timeout": 0}}, "$.execution.timeout"),
        ({"execution": {"timeout": -5}}, "$.execution.timeout"),
        ({"execution": {"timeout": 10**400}}, "$.execution.timeout"),
        ({"execution": {"timeout": 1e300}}, "$.execution.timeout"),
        ({"execution": {"timeout": "30s"}}, "$.execution.timeout"),
        ({"execution": {"environment": {"A": 1}}}, "$.execution.environment"),
        ({"execution": {"script": {"type": "BASH"}}}, "$.execution.script"),
        ({"execution": {"target": None}}, "$.execution.target"),
        ({"execution": None}, "$.execution"),
        ({"metadata": {"servers": 7}}, "$.metadata.servers"),
    ],
)
def test_a_malformed_job_fails_alone_with_the_field_named(
    changes: dict[str, Any], field: str
) -> None:
    bad = {**a_job(id="bad"), **changes} if "execution" in changes else a_job(id="bad", **changes)
    if isinstance(changes.get("execution"), dict):
        bad = a_job(id="bad", execution=changes["execution"])

    first, failed, last = decoded(a_job(id="a"), bad, a_job(id="z"))

    assert isinstance(first, JobBody)
    assert isinstance(last, JobBody)
    assert isinstance(failed, BadJob)
    assert failed.id == "bad"
    assert field in failed.fault


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"null", b'{"jobs": 7}', b"<html>", b'{"jobs": [}', b"\xff"]
)
def test_an_answer_that_is_no_claim_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="claim"):
        decode_claim(body)


def test_text_that_is_not_utf_8_fails_its_job_alone() -> None:
    body = json.dumps({"jobs": [a_job(id="bad", script={"content": "XX"}), a_job(id="z")]})

    bad, good = decode_claim(body.encode().replace(b'"XX"', b'"\xff"'))

    assert isinstance(bad, BadJob)
    assert bad.id == "bad"
    assert isinstance(good, JobBody)


def test_half_of_a_surrogate_pair_fails_its_job_alone() -> None:
    body = json.dumps({"jobs": [a_job(id="bad", script={"content": "\ud800"}), a_job(id="z")]})

    bad, good = decode_claim(body.encode())

    assert isinstance(bad, BadJob)
    assert (bad.id, "malformed" in bad.fault) == ("bad", True)
    assert isinstance(good, JobBody)


def test_a_job_that_is_kept_and_read_again_makes_the_same_plan() -> None:
    (job,) = decoded(a_job())
    assert isinstance(job, JobBody)

    again = decode_job(encode(job))

    options: dict[str, Any] = {"sealing_key": None, "max_execution_seconds": DAY}
    assert plan_job(again, **options) == plan_job(job, **options)


def test_nesting_too_deep_to_follow_is_a_named_error_of_its_job() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    body = json.dumps({"jobs": [a_job(id="bad", inputData="XX"), a_job(id="z")]}).encode()

    bad, good = decode_claim(body.replace(b'"XX"', deep))

    assert isinstance(bad, BadJob)
    assert (bad.id, "recursion" in bad.fault) == ("bad", True)
    assert isinstance(good, JobBody)
    with pytest.raises(ProtocolError):
        decode_claim(b'{"jobs": [{"id": "a", "execution": {"inputData": ' + deep)


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(st.lists(json_values, max_size=4))
def test_any_json_in_a_claim_is_jobs_or_bad_jobs(values: list[object]) -> None:
    jobs = decode_claim(msgspec.json.encode({"jobs": values}))

    assert len(jobs) == len(values)
    assert all(isinstance(job, JobBody | BadJob) for job in jobs)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_claim_or_a_protocol_error(body: bytes) -> None:
    try:
        decode_claim(body)
    except ProtocolError as error:
        assert str(error).startswith("claim: ")  # noqa: PT017  any bytes may be a claim too


@pytest.mark.parametrize("value", [None, "7", 2.5, [], {"a": 1}])
def test_what_nobody_reads_of_a_job_may_be_anything(value: object) -> None:
    job = a_job(
        execution={"retryPolicy": value, "variables": value},
        metadata={"logId": value, "serverCount": value, "multiServer": value, "serverId": value},
        priority=value,
        createdAt=value,
        scheduledFor=value,
    )

    assert ids(planned(job)) == [a_server()["id"]]


PLACES = (
    ("execution", "environment"), ("execution", "timeout"), ("execution", "inputData"),
    ("execution", "target"), ("execution", "script"), ("execution", "retryPolicy"),
    ("execution", "target", "serverDetails"), ("execution", "target", "serverDetails", "id"),
    ("execution", "target", "serverDetails", "port"), ("execution", "script", "content"),
    ("execution", "script", "type"), ("execution", "target", "serverId"),
    ("metadata", "servers"), ("metadata", "eventId"), ("metadata",), ("attempts",), ("type",),
)  # fmt: skip


@given(st.sampled_from(PLACES), json_values)
def test_any_json_in_any_place_of_a_job_is_a_plan_or_a_named_error(
    place: tuple[str, ...], value: object
) -> None:
    job = a_job()
    inside: Any = job
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value

    (body,) = decode_claim(msgspec.json.encode({"jobs": [job]}))

    if isinstance(body, JobBody):
        try:
            plan = plan_job(body, sealing_key=None, max_execution_seconds=DAY)
        except JobError:
            return
        assert plan.executions
        assert all(
            (each.server.target is None) == (each.server.fault is not None)
            for each in plan.executions
        )
    else:
        assert body.id == "job_1"


def test_a_plan_shows_neither_script_nor_secrets() -> None:
    job = a_job(
        a_server(privateKey="PRIVATE", passphrase="PHRASE", password="WORD"),
        script={"content": "SCRIPT"},
        execution={"environment": {"A": "VALUE"}, "inputData": {"a": "INPUT"}},
    )

    shown = repr(planned(job))

    assert not [
        each for each in ("PRIVATE", "PHRASE", "WORD", "SCRIPT", "VALUE", "INPUT") if each in shown
    ]


def ids(plan: Plan) -> list[str]:
    return [each.server.id for each in plan.executions]


def fault_of(plan: Plan, index: int) -> str | None:
    return plan.executions[index].server.fault


def hidden(text: str | None) -> Secret | None:
    return Secret(text) if text else None
