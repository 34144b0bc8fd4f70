"""The runner: what scripts ask for on its way to whoever is attached, and the answers on theirs."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    Call,
    Server,
    in_every_shell,
    message,
    new_id,
    payload,
    serving,
    wait_until,
)

LIMIT = 1024 * 1024 - 1024
ASK = b'cronium.getVariable "$1"'
UNTIL_TOLD = b"until [ -e $HOME/go ]; do sleep 0.02; done; "


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash") as one:
        yield one


def told(count: int) -> Callable[[Call], bool]:
    return lambda call: len(call.calls) >= count


def answer(server: Server, run_id: str, call_id: str, body: bytes, length: int = -1) -> int:
    """The runner's exit status."""
    size = len(body) if length < 0 else length
    call = server.call("answer", run_id, call_id, str(size))
    call.send(body)
    return call.finish()


def put(name: str, content: str = "{}") -> bytes:
    """A call as bash makes it who has no helper."""
    there = f'"$CRONIUM_CALLS/{name}"'
    return f"printf %s '{content}' >{there}.new; mv {there}.new {there}.req; ".encode()


def calls_of(server: Server, run_id: str) -> Path:
    return server.directory(run_id) / "calls"


def test_a_call_is_told_to_the_attacher_and_its_answer_given_to_the_script(server: Server) -> None:
    run_id = new_id()
    call = server.start(run_id, payload(b"echo before; cronium.getVariable K; cronium.input"))
    call.read_until(told(1))
    ((first, request),) = call.calls

    assert answer(server, run_id, first, b"ok\n two\nlines ") == 0
    call.read_until(told(2))
    assert answer(server, run_id, call.calls[1][0], b"error\nno") == 0

    assert call.finish() == 0
    assert request == b'{"call":"getVariable","form":"text","key":"K"}\n'
    assert (call.out, call.err) == (b"before\n two\nlines \n", b"cronium: no\n")
    assert call.end == (1, "exit")
    assert list(calls_of(server, run_id).iterdir()) == []
    assert answer(server, run_id, first, b"ok\nlate") == 0
    assert list(calls_of(server, run_id).iterdir()) == []
    assert list(server.directory(run_id).glob("answer.*")) == []


def test_a_call_wakes_the_attacher_that_sleeps_and_the_one_about_to(tmp_path: Path) -> None:
    # Without being woken it would sleep for longer than we are patient.
    trap = "    trap 'kill \"$sleeper\"' URG\n"
    edits = {
        "*) tick=1 tick_ms=1000 ;;": "*) tick=50 tick_ms=1000 ;;",
        trap: f'    sleep 0.4\n{trap}    [ "$tick" != 50 ] || : >"$HOME/asleep"\n',
    }

    def check(server: Server) -> None:
        run_id = new_id()
        script = UNTIL_TOLD + b"cronium.event & sleep 0.2; cronium.event; wait"
        call = server.start(run_id, payload(script))
        wait_until((server.home / "asleep").exists, "the attacher sleeps for long")

        (server.home / "go").touch()

        call.read_until(told(2))
        for call_id, _ in call.calls:
            answer(server, run_id, call_id, b"ok\n{}")
        call.finish()
        assert call.out == b"{}\n{}\n"

    in_every_shell(tmp_path, check, edits=edits)


def test_a_call_is_told_once_to_each_attacher_until_it_is_answered(server: Server) -> None:
    run_id = new_id()
    script = put("a") + put("b") + b"echo asked; " + UNTIL_TOLD
    first = server.start(run_id, payload(script))
    first.read_until(lambda call: told(2)(call) and call.out != b"")
    assert answer(server, run_id, "a", b"ok\n1") == 0

    second = server.call("attach", run_id, "6", "0")
    second.read_until(told(1))
    (server.home / "go").touch()
    second.finish()
    third = server.ask("attach", run_id, "6", "0")[1]

    assert first.finish() == 0
    assert [call_id for call_id, _ in first.calls] == ["a", "b"]
    assert [call_id for call_id, _ in second.calls] == ["b"]
    # The script has ended, and nobody waits any more.
    assert third.calls == []


def test_what_was_said_is_told_to_whoever_attaches_later(server: Server) -> None:
    run_id = new_id()
    script = b"cronium.output 'two words' && cronium.setCondition false && echo said; " + UNTIL_TOLD
    first = server.start(run_id, payload(script))
    for count in (1, 2):
        first.read_until(told(count))
        answer(server, run_id, first.calls[-1][0], b"ok\n")
    first.read_until(lambda call: call.out != b"")
    said = [
        ("output", b'{"call":"output","form":"text","dataText":"two words"}\n'),
        ("condition", b'{"call":"setCondition","form":"text","condition":"false"}\n'),
    ]

    second = server.call("attach", run_id, "5", "0")
    second.read_until(told(2))
    before_the_end = list(second.calls)
    # What an earlier worker heard may come to lie there only now.
    (calls_of(server, run_id) / "output.said").write_bytes(b"later")
    (server.home / "go").touch()
    second.finish()
    third = server.ask("attach", run_id, "5", "0")[1]

    assert before_the_end == said
    assert second.calls[2:] == third.calls == [("output", b"later"), said[1]]
    assert third.heads[-1].startswith("x 0 exit")
    assert first.finish() == 0
    assert first.calls[2:] == []


def test_what_was_said_is_not_told_again_to_who_was_there_from_the_start(server: Server) -> None:
    run_id = new_id()
    call = server.start(run_id, payload(b"cronium.output once"))
    call.read_until(told(1))

    answer(server, run_id, call.calls[0][0], b"ok\n")

    assert call.finish() == 0
    assert len(call.calls) == 1
    assert [path.name for path in calls_of(server, run_id).iterdir()] == ["output.said"]


def test_an_answer_that_was_cut_off_is_none(server: Server) -> None:
    run_id = new_id()
    call = server.start(run_id, payload(b"cronium.getVariable K"))
    call.read_until(told(1))
    call_id = call.calls[0][0]

    assert answer(server, run_id, call_id, b"ok\nhal", length=7) == 74
    assert answer(server, run_id, call_id, b"ok\nhalf") == 0

    call.finish()
    assert call.out == b"half\n"
    assert list(server.directory(run_id).glob("answer.*")) == []


def test_an_answer_to_no_run_or_to_no_name_is_refused(dash: Server) -> None:
    assert answer(dash, new_id(), "call", b"") == 66
    for bad in (("../x", "a", "0"), ("x", "../a", "0"), ("x", "a" * 65, "0"), ("x", "a", "-1")):
        assert dash.ask("answer", *bad)[0] == 64


# What may lie where calls do, when a script means it badly or by mistake.
ODDITIES = b"""
cd "$CRONIUM_CALLS"
ln -s /etc/passwd link.req
ln -s "$HOME/nothing" dangling.req
mkdir directory.req
mkfifo fifo.req output.said
ln -s /etc/passwd condition.said
truncate -s 20G sparse.req
head -c 1047553 /dev/zero >large
mv large large.req
: >empty.req
touch 'a b.req' $'new\\nline.req' 'quote".req' '*.req' .req .hidden.req answer.ans
touch -- -.req "$(printf %065d 0).req"
for i in {1..1000}; do : >"junk $i.req"; : >"junk$i"; done
ln -s /dev/zero zero.req
ln -s fifo.req unread.req
"""


def test_nothing_but_calls_is_told_whatever_lies_there(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        script = ODDITIES + put("well") + b"echo ready; sleep 0.1; " + UNTIL_TOLD + b"echo end"
        first = server.start(run_id, payload(script))
        first.read_until(lambda call: told(1)(call) and call.out != b"")

        second = server.call("attach", run_id, "0", "0")
        second.read_until(lambda call: told(1)(call) and call.out != b"")
        (server.home / "go").touch()
        second.finish()

        # A dash in front is a name like any other.
        assert {call_id for call_id, _ in first.calls} == {"well"}
        assert second.calls == [("well", b"{}")]
        assert second.end == (0, "exit")
        assert second.out == b"ready\nend\n"
        assert server.ask("forget", run_id)[0] == 0
        assert not server.directory(run_id).exists()

    in_every_shell(tmp_path, check)


def test_a_call_of_the_greatest_size_is_told_whole(server: Server) -> None:
    run_id = new_id()
    size = LIMIT - len('{"call":"getVariable","form":"text","key":""}\n')
    script = f"k=$(head -c {size} /dev/zero | tr '\\0' k); cronium.getVariable $k; "
    call = server.start(run_id, payload(script.encode() + b"cronium.getVariable ${k}k"))
    call.read_until(told(1))

    answer(server, run_id, call.calls[0][0], b"ok\n" + bytes(0) + b"v" * 2_000_000)
    call.finish()

    assert len(call.calls[0][1]) == LIMIT
    assert call.calls[0][1].endswith(b'kkk"}\n')
    assert call.out == b"v" * 2_000_000 + b"\n"
    assert call.err == b"cronium: a call may have no more than 1 MiB\n"


def test_a_frame_is_as_long_as_announced_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    line = 'printf \'c %s %s\\n\' "$1" "$n" || exit 74\n'
    changes = """
    case $1 in
    emptied) : >"$2" ;;
    removed) rm "$2" ;;
    shortened) printf abc >"$2" ;;
    lengthened) printf 0123456789abc >"$2" ;;
    esac
    """

    def check(server: Server) -> None:
        run_id = new_id()
        names = ("emptied", "removed", "shortened", "lengthened")
        script = b"".join(put(name, "9876543210") for name in names) + UNTIL_TOLD + b"echo end"
        call = server.start(run_id, payload(script))
        call.read_until(told(4))
        (server.home / "go").touch()
        call.finish()

        assert dict(call.calls) == {
            "emptied": bytes(10),
            "removed": bytes(10),
            "shortened": b"abc" + bytes(7),
            "lengthened": b"0123456789",
        }
        assert (call.out, call.end) == (b"end\n", (0, "exit"))

    in_every_shell(tmp_path, check, edits={line: line + changes})


def test_of_many_calls_some_wait_until_others_are_answered(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        script = b"for i in {1..8}; do cronium.getVariable $i & done; " + UNTIL_TOLD
        call = server.start(run_id, payload(script + b"echo all; sleep 0.3; echo asked; wait"))
        there = calls_of(server, run_id)
        wait_until(lambda: len(list(there.glob("*.req"))) == 8, "all have asked")
        (server.home / "go").touch()
        call.read_until(lambda call: call.out == b"all\nasked\n" and len(call.calls) >= 3)
        assert len(call.calls) == 3
        for answered in range(8):
            call.read_until(told(answered + 1))
            call_id, request = call.calls[answered]
            answer(server, run_id, call_id, b"ok\n" + request.split(b'"')[-2])
        call.finish()

        assert sorted(map(int, call.out.split()[2:])) == list(range(1, 9))
        assert len({call_id for call_id, _ in call.calls}) == len(call.calls) == 8

    in_every_shell(tmp_path, check, edits={"most_calls=100": "most_calls=3"})


def test_helpers_that_were_deleted_are_there_again_for_the_next_run(server: Server) -> None:
    shutil.rmtree(server.helpers)
    assert server.run(new_id(), payload(b"type -t cronium.input")).out == b"function\n"
    (server.helpers / "python" / "cronium.py").unlink()
    script = b"print(cronium.CroniumError.__name__)"

    call = server.run(new_id(), payload(script, interpreter="python3"))

    assert call.out == b"CroniumError\n"
    assert not list(server.helpers.glob(".new*"))


def test_without_room_for_the_helpers_nothing_is_started_and_it_is_said_why(
    server: Server,
) -> None:
    run_id = new_id()
    shutil.rmtree(server.helpers)
    server.helpers.write_text("in the way")
    call = server.call("run")
    call.send(message(run_id, payload(b"touch $HOME/started")))

    assert call.finish() == 73
    assert call.complaint == f"cronium: the helpers could not be put into {server.helpers}\n"
    assert not (server.home / "started").exists()
    assert not server.directory(run_id).exists()


def test_who_asks_after_the_end_is_told_that_and_does_not_wait(server: Server) -> None:
    run_id = new_id()
    # One asks before the end, and one after it; neither has an answer.
    script = (
        b"setsid bash -c 'echo asks; exec 2>$HOME/early; cronium.event' & "
        b"setsid timeout 20 bash -c 'until compgen -G $CRONIUM_CALLS/../exit.*; do sleep 0.1; done;"
        b" exec 2>$HOME/late; cronium.event' >/dev/null & "
        b'until [ "$(echo "$CRONIUM_CALLS"/*.req)" != "$CRONIUM_CALLS/*.req" ]; do sleep 0.02; done'
    )
    call = server.start(run_id, payload(script))
    call.finish()

    for name in ("early", "late"):
        file = server.home / name
        wait_until(lambda file=file: file.exists() and file.read_text(), f"{name} is told")  # type: ignore[misc]
        assert file.read_text() == "cronium: the run has ended\n"
    assert not server.ask("attach", run_id, "0", "0")[1].calls


def test_what_the_environment_says_of_the_interpreters_is_kept(dash: Server) -> None:
    (dash.home / "mine.bash").write_text("mine() { echo mine $#; }\n")
    (dash.home / "lib" / "cronium_user").mkdir(parents=True)
    (dash.home / "lib" / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 'mine'\n")
    (dash.home / "lib" / "cronium_user" / "index.js").write_text("module.exports = 'mine'\n")
    environment = (
        b"export BASH_ENV='$HOME/mine.bash'\n"
        b'export PYTHONPATH="$HOME/lib"\nexport NODE_PATH="$HOME/lib"\n'
        b"export NODE_OPTIONS=--no-deprecation\n"
    )
    scripts = {
        "bash": b"mine 1; bash -c 'mine 1 2'; type -t cronium.event; "
        b"bash -euc 'type -t cronium_event'",
        "python3": b"import sitecustomize as other\n"
        b"print(mine, other.__file__[-20:], cronium.event)",
        "node": b"const mine = require('cronium_user');"
        b"console.log(mine, process.env.NODE_OPTIONS, typeof cronium.event)",
    }

    said = {
        name: dash.run(new_id(), payload(text, interpreter=name, environment=environment))
        for name, text in scripts.items()
    }

    assert said["bash"].out == b"mine 1\nmine 2\nfunction\nfunction\n"
    assert said["python3"].out.startswith(b"mine lib/sitecustomize.py <function event")
    assert said["node"].out == b"mine --no-deprecation function\n"
    assert {call.err for call in said.values()} == {b""}


def test_a_run_inside_of_a_run_reads_the_helper_once(dash: Server) -> None:
    environment = f"export BASH_ENV='{dash.helpers}/cronium.bash'\n".encode()

    call = dash.run(new_id(), payload(b"type -t cronium.event", environment=environment))

    assert (call.out, call.err) == (b"function\n", b"")


def test_without_the_runners_directory_a_helper_says_so(dash: Server) -> None:
    here = os.fsencode(dash.home)
    for variable in (b"unset CRONIUM_CALLS", b"export CRONIUM_CALLS=/nowhere"):
        script = (
            variable + b"; cronium.input || python3 -c 'cronium.input()' || "
            b"""node -e 'require("cronium").input()'"""
        )
        call = dash.run(new_id(), payload(script, directory=here))

        said = call.err.decode()
        assert said.count("CRONIUM_CALLS") >= 3
        assert (call.out, call.end) == (b"", (1, "exit"))
    assert not list(dash.home.glob("*.new")) + list(dash.home.glob("*.req"))
