"""What scripts ask for, from real scripts on a real server to a real queue and back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.loopback.test_runtime_api import SECRET, RuntimeServer, serving
from tests.worker_rig import WorkerRig, running_worker, until_exists, worker_on
from worker.demo.sshd import LocalServer, Sshd, open_fleet, open_sshd, unusable_reason
from worker.queue_server.model import JobReport, ScriptType

GIVEN = {"text": "línea\n\"two\" 日本 \\n $x 'y'", "list": [1, 2.5, None, True]}

BASH = r"""
set -eu -o pipefail -o noclobber
shopt -s nullglob failglob expand_aliases
alias read=false until=false
IFS=,:x
readonly name=x file=x status=x call=x text=x answer=x request=x LC_ALL=C.UTF-8
trap 'echo debug >&2' ERR
sleep 300 & background=$!
check() { [ "$1" = "$2" ] || echo "$3: $1 and not $2"; }

cronium.input >"$HOME/input"
check "$(cronium.input)" "$CRONIUM_EXPECTED" input
case $(cronium.event) in *'"serverName":'*) ;; *) echo 'no event' ;; esac
value=$'a\tb "c" \\d\\n \001\177 é日 \nsecond & third'
cronium.setVariable BASH.key-1 "$value"
check "$(cronium.getVariable BASH.key-1)" "$value" value
cronium_set_variable OBJECT '{"a": [1, 2]}'
check "$(cronium_get_variable OBJECT)" '{"a":[1,2]}' object
printf 'from\nstdin\n' | cronium.setVariable PIPED
check "$(cronium.getVariable PIPED)" $'from\nstdin' piped
big=$(head -c 500000 /dev/zero | tr '\0' x)é
cronium.setVariable BIG "$big"
check "$(cronium.getVariable BIG)" "$big" big
printf -v bytes '\377\200 tail'
cronium.setVariable BYTES "$bytes"
check "$(cronium.getVariable BYTES)" '�� tail' bytes

cd /
(cronium.setVariable SUB shell)
bash -c 'cronium.setVariable CHILD "$(cronium.getVariable SUB)"'
python3 -c 'cronium.set_variable("CHILD", cronium.get_variable("CHILD") + "+python")'
node -e 'const c = require("cronium"); c.setVariable("CHILD", c.getVariable("CHILD") + "+node")'
check "$(echo CHILD | xargs -n 1 bash -c 'cronium_get_variable "$0"')" shell+python+node child

if missing=$(cronium.getVariable NONE 2>"$HOME/none"); then echo 'there is NONE'; fi
check "$missing" '' missing
case $(cat "$HOME/none") in 'cronium: there is no variable NONE'*) ;; *) cat "$HOME/none" ;; esac
for bad in ../x . '' 'a b' "${big:0:200}"; do
    ! cronium.getVariable "$bad" 2>/dev/null || echo "no error for $bad"
done
! cronium.setCondition maybe 2>/dev/null || echo 'maybe'
! cronium.executeToolAction t a 2>/dev/null || echo 'no API, and a tool action'

cronium.output first
cronium_output '{"rows": ["é", 1]}'
cronium.setCondition false
cronium_set_condition true
kill "$background"
! wait "$background" 2>/dev/null || echo 'the script has another child'
check "$-${IFS}" "ehuBC,:x" options
trap 'exit 0' EXIT
cronium.getVariable NONE 2>/dev/null
echo 'not reached'
"""

PYTHON = r"""
import json, os, subprocess, sys, threading
import cronium as imported

def check(one, other, name):
    if one != other:
        print(name, repr(one)[:200], "and not", repr(other)[:200])

def refused(function, *arguments):
    try:
        print("no error for", arguments, function(*arguments))
    except imported.CroniumError as error:
        return str(error)

given = json.loads(os.environ["CRONIUM_EXPECTED"])
check(cronium.input(), given, "input")
check(imported.input(), given, "imported")
check(cronium.event()["jobId"], os.environ["CRONIUM_JOB_ID"], "event")
values = given, "plain", "é\n\"'日\x7f", "ü" * 250000, [], {"a": None}, True
for number, value in enumerate(values):
    cronium.setVariable("PY.%d" % number, value)
    check(cronium.get_variable("PY.%d" % number), value, "value %d" % number)
cronium.set_variable("SURROGATE", "\ud800")
check(cronium.getVariable("SURROGATE"), "\ufffd" * 3, "surrogate")
check(refused(cronium.get_variable, "NONE")[:27], "there is no variable NONE (", "none")
for bad in ("../x", ".", "", "a b", "x" * 129):
    refused(cronium.getVariable, bad)
refused(cronium.set_condition, "maybe")
refused(cronium.output, "x" * 1100000)
refused(cronium.executeToolAction, "t", "a")
threads = [threading.Thread(target=cronium.set_variable, args=("T%d" % n, n)) for n in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
check([cronium.getVariable("T%d" % n) for n in range(20)], list(range(20)), "threads")
os.chdir("/")
done = subprocess.run([sys.executable, "-c", "print(cronium.get_variable('T7'))"], stdout=-1)
check(done.stdout, b"7\n", "child")
done = subprocess.run([sys.executable, "-I", "-c", "print('alone')"], stdout=-1, stderr=-1)
check((done.stdout, done.stderr), (b"alone\n", b""), "isolated")
cronium.output({"first": 1})
cronium.output(["last", None])
cronium.setCondition([])
cronium.set_condition("true")
"""

NODE = r"""
const assert = require("assert");
const { execFileSync } = require("child_process");
const required = require("cronium");
const given = JSON.parse(process.env.CRONIUM_EXPECTED);
(async () => {
  assert.strictEqual(required, cronium);
  assert.deepStrictEqual(cronium.input(), given);
  assert.deepStrictEqual(await cronium.input(), given);
  assert.strictEqual((await cronium.event()).jobId, process.env.CRONIUM_JOB_ID);
  const values = [given, "plain", "é\n\"'日", "ü".repeat(250000), [], { a: null }, true];
  for (const [n, value] of values.entries()) {
    assert.strictEqual(cronium.setVariable(`NODE.${n}`, value), undefined);
    assert.deepStrictEqual(await cronium.get_variable(`NODE.${n}`), value);
  }
  await cronium.set_variable("SURROGATE", "\ud800");
  assert.strictEqual(cronium.getVariable("SURROGATE"), "\ufffd");
  assert.throws(() => cronium.getVariable("NONE"), /^CroniumError: there is no variable NONE /);
  await assert.rejects(async () => await cronium.get_variable("NONE"), cronium.CroniumError);
  for (const bad of ["../x", ".", "", "a b", "x".repeat(129)]) {
    assert.throws(() => cronium.getVariable(bad), Error);
  }
  assert.throws(() => cronium.setCondition("maybe"), Error);
  assert.throws(() => cronium.output("x".repeat(1100000)), /no more than 1 MiB/);
  assert.throws(() => cronium.executeToolAction("t", "a"), Error);
  process.chdir("/");
  const child = "console.log(require('cronium').getVariable('NODE.1'))";
  assert.strictEqual(String(execFileSync(process.execPath, ["-e", child])), "plain\n");
  const module = "console.log(await cronium.getVariable('NODE.1'))";
  const options = [...process.execArgv, "--input-type=module", "-e", module];
  assert.strictEqual(String(execFileSync(process.execPath, options)), "plain\n");
  await cronium.output("first");
  cronium.output({ last: [1] });
  cronium.setCondition(0);
  await cronium.set_condition(1);
})().catch((error) => console.log(error.stack));
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if reason := unusable_reason():
        pytest.skip(reason)
    with open_sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalServer, ...]]:
    if reason := unusable_reason():
        pytest.skip(reason)
    with open_fleet(tmp_path_factory.mktemp("fleet"), 2) as servers:
        yield servers


async def ran(rig: WorkerRig, names: list[str], content: str, kind: ScriptType) -> JobReport:
    expected = json.dumps(GIVEN, separators=(",", ":"), ensure_ascii=False)
    environment = {"CRONIUM_EXPECTED": expected}
    return await rig.run(content, names, kind=kind, environment=environment, input_data=GIVEN)


def said(report: JobReport) -> tuple[Any, Any]:
    """The output and the condition that were reported, `...` where none was."""
    assert report.job.result is not None
    return tuple(report.job.result.get(name, ...) for name in ("scriptOutput", "condition"))


async def test_bash_python_and_node_ask_for_everything(server: Sshd, tmp_path: Path) -> None:
    scripts = {ScriptType.BASH: BASH, ScriptType.PYTHON: PYTHON, ScriptType.NODEJS: NODE}
    reports = {}
    async with running_worker(tmp_path) as rig:
        names = rig.add(server.server)

        for kind, content in scripts.items():
            with trio.fail_after(60):
                reports[kind] = await ran(rig, names, content, kind)

    for report in reports.values():
        (row,) = report.executions
        assert (row.output, row.exit_code) == ("", 0)
    assert {kind: said(report) for kind, report in reports.items()} == {
        ScriptType.BASH: ({"rows": ["é", 1]}, True),
        ScriptType.PYTHON: (["last", None], True),
        ScriptType.NODEJS: ({"last": [1]}, True),
    }


async def test_a_tool_action_is_executed_where_there_is_a_runtime_api(
    server: Sshd, tmp_path: Path
) -> None:
    script = """
cronium.executeToolAction email send '{"to": ["a b"]}'
python3 -c 'print(cronium.execute_tool_action("chat", "post", {"text": None}))'
node -e 'require("cronium"); console.log(JSON.stringify(cronium.executeToolAction("a", "b")))'
cronium.setVariable K v; cronium.getVariable K
"""
    runtime = RuntimeServer()
    with trio.fail_after(60):
        async with serving(runtime) as url:
            environ = {"CRONIUM_RUNTIME_URL": url, "CRONIUM_JWT_SECRET": SECRET}
            async with running_worker(tmp_path, environ) as rig:
                report = await rig.run(script, rig.add(server.server))

    assert (report.executions[0].output or "").splitlines() == [
        '{"tool":"email","action":"send","config":{"to":["a b"]}}',
        "{'tool': 'chat', 'action': 'post', 'config': {'text': None}}",
        '{"tool":"a","action":"b","config":{}}',
        "v",
    ]
    assert runtime.kept == {"K": "v"}


async def test_a_call_waits_for_the_next_worker_which_is_told_what_was_said_before(
    server: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "started", tmp_path / "go"
    script = f"""
cronium.output '"said to the first"'; cronium.setCondition false; cronium.setVariable K known
touch {mark}; until [ -e {go} ]; do sleep 0.02; done
cronium.getVariable K
"""
    async with running_worker(tmp_path) as rig:
        names = rig.add(server.server)
        with trio.fail_after(60):
            job_id = rig.submit(script, names)
            await until_exists(mark)
            rig.drain.set()
            await rig.until(job_id, "queued")
            go.touch()
            while not list(server.server.home.glob(".cache/cronium/rooms/*/calls/*.req")):
                await trio.sleep(0.01)

            async with worker_on(rig.queue, tmp_path / "state-2") as second:
                report = await second.finished(job_id)

    assert report.executions[0].output == "known\n"
    assert said(report) == ("said to the first", False)


async def test_of_two_servers_each_says_its_own_and_the_condition_is_what_all_say(
    two: tuple[LocalServer, ...], tmp_path: Path
) -> None:
    script = """
cronium.output "$CRONIUM_SERVER_NAME says"
[ "$CRONIUM_SERVER_NAME" = %s ] && cronium.setCondition false || cronium.setCondition true
"""
    async with running_worker(tmp_path) as rig:
        names = rig.add(*two)
        with trio.fail_after(60):
            report = await rig.run(script % names[1], names)

    assert said(report) == ({name: f"{name} says" for name in names}, False)


async def test_what_else_lies_where_calls_do_harms_neither_the_calls_nor_the_run(
    server: Sshd, tmp_path: Path
) -> None:
    script = """
cd "$CRONIUM_CALLS"
ln -s /etc/shadow shadow.req; ln -s /etc/shadow output.said; mkfifo fifo.req condition.said
mkdir folder.req; truncate -s 5G large.req; touch 'a b.req' $'a\nb.req' '../x.req'
printf 'not JSON \377\0 o 5\n' >odd.new; mv odd.new odd.req
for i in {1..150}; do echo '{"call":"event","form":"json"}' >many.$i.req; done
echo '{"call":"output","form":"json","data":"by hand"}' >output.req
cronium.setVariable K "still works"
cronium.getVariable K
until [ -e odd.ans ] && [ "$(echo many.*.ans | wc -w)" = 150 ]; do sleep 0.02; done
cat odd.ans; echo; ls | grep -c shadow
rm -rf "$CRONIUM_CALLS"
! cronium.event 2>/dev/null || echo 'an answer from nowhere'
"""
    async with running_worker(tmp_path) as rig:
        with trio.fail_after(60):
            report = await rig.run(script, rig.add(server.server))

    works, error, bad, shadows = (report.executions[0].output or "").splitlines()
    assert (works, error, shadows) == ("still works", "error", "1")
    assert bad.startswith("not a call: ")
    assert said(report) == ("by hand", ...)
