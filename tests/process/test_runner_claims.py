"""The runner: the claim of a run, and the rooms that are made for what it has."""

import os
import shutil
from collections import Counter
from pathlib import Path

from tests.process.runner_processes import ready
from tests.process.runner_rig import (
    Call,
    Server,
    carriers,
    in_every_shell,
    kill_if_alive,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.remote.payload import LAST_LINE

NAMED = '    { echo "$token" >>"$claim"; } 2>/dev/null && return\n'
STARTS = b'echo x >>"$HOME/starts"; echo done'


def starts(server: Server) -> str:
    path = server.home / "starts"
    return path.read_text() if path.exists() else ""


def claimed(server: Server) -> set[Path]:
    claims = server.root.glob("runs/*")
    return {server.root / "rooms" / claim.read_text().strip() for claim in claims}


def lose(server: Server, run_id: str, call: Call) -> None:
    """Kills all that knows of the run."""
    call.kill()
    kill_if_alive(server.supervisor(run_id))
    for pid in carriers(run_id):
        kill_if_alive(pid)


def test_a_claim_that_is_just_being_made_is_waited_for(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        first = server.call("run")
        first.send(server.message(run_id, payload(STARTS), limit_seconds=60))
        wait_until(server.claim(run_id).exists, "it is claimed")

        second = server.run(run_id, payload(STARTS))

        first.finish()
        assert starts(server) == "x\n"
        assert second.out == b"done\n"
        # Also where the other took over before it had heard anything.
        assert first.out == b"done\n" or first.heads[-1] == "t"
        assert {first.state, second.state} <= {"new", "attached", "ended"}

    in_every_shell(tmp_path, check, edits={NAMED: f"    sleep 0.4\n{NAMED}"})


def test_a_claim_that_names_no_room_for_long_starts_nothing_any_more(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        (server.root / "runs").mkdir()
        server.claim(run_id).touch()

        assert run_id not in "".join(server.ask("list")[1].heads)
        assert server.ask("attach", run_id, "0", "0")[0] == 66
        call = server.run(run_id, payload(STARTS))

        assert call.heads[2:] == ["x 125 forgotten 0 0"]
        assert starts(server) == ""
        assert not server.claim(run_id).exists()
        assert (server.root / "forgotten" / run_id).exists()

    in_every_shell(tmp_path, check)


def test_no_run_is_buried_in_a_place_that_is_not_ours(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        (server.root / "runs").mkdir()
        (server.root / "forgotten").touch()
        server.claim(run_id).touch()
        (server.home / "anywhere").mkdir()
        (server.home / "elsewhere").symlink_to(server.home / "anywhere")

        assert server.ask("attach", run_id, "0", "0")[0] == 66

        assert list((server.home / "anywhere").glob("*/*")) == []
        assert server.claim(run_id).exists()

    others = 'roots="/var/tmp/cronium-$uid /tmp/cronium-$uid"'
    in_every_shell(tmp_path, check, edits={others: 'roots="$HOME/elsewhere"'})


def test_a_run_is_found_whose_claim_was_left_empty_when_the_machine_went_down(
    tmp_path: Path,
) -> None:
    def check(server: Server) -> None:
        ended, lost = new_id(), new_id()
        server.run(ended, payload(b"echo well; exit 3"))
        call = server.start(lost, payload(b"echo begun; exec sleep 30"))
        call.read_until(lambda call: call.out == b"begun\n")
        lose(server, lost, call)
        for run_id in (ended, lost):
            room = server.directory(run_id)
            for path in (server.claim(run_id), server.owner(run_id), room / "host"):
                path.write_text("")

        again = server.run(ended, payload(STARTS))
        assert (again.state, again.out, again.end) == ("ended", b"well\n", (3, "exit"))
        again = server.run(lost, payload(STARTS))
        assert (again.out, again.end) == (b"begun\n", (125, "lost"))
        assert server.ask("forget", ended, lost)[0] == 0
        assert (starts(server), server.rooms()) == ("", [])

    in_every_shell(tmp_path, check)


def test_one_who_claims_and_names_the_room_much_later_does_not_start(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        slow = server.call("run")
        slow.send(server.message(run_id, payload(STARTS), limit_seconds=60))
        slow.send_eof()
        wait_until(server.claim(run_id).exists, "it is claimed")

        assert server.ask("attach", run_id, "0", "0")[0] == 66
        slow.finish()

        assert slow.heads[2:] == ["x 125 forgotten 0 0"]
        assert starts(server) == ""
        assert not server.claim(run_id).exists()
        wait_until(lambda: not server.rooms(), "its room is gone")

    in_every_shell(tmp_path, check, edits={NAMED: f"    sleep 4\n{NAMED}"})


def test_a_room_that_a_killed_supervisor_left_over_is_removed(
    tmp_path: Path,
) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.call("run")
        call.send(server.message(run_id, payload(STARTS), limit_seconds=60))
        wait_until(server.claim(run_id).exists, "it is claimed")

        kill_if_alive(server.supervisor(run_id))
        call.finish()

        assert call.heads[2:] == ["x 125 forgotten 0 0"]
        assert server.rooms() == []
        assert starts(server) == ""

    in_every_shell(tmp_path, check, edits={NAMED: f"    sleep 2\n{NAMED}"})


def test_a_run_whose_room_went_with_its_supervisor_is_lost(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        call = server.start(run_id, payload(b"echo first; exec sleep 30"))
        # Before that it makes files, and does not carry yet what it is found by.
        call.read_until(lambda call: call.out == b"first\n")
        lose(server, run_id, call)
        shutil.rmtree(server.directory(run_id))

        assert server.ask("attach", run_id, "0", "0")[1].end == (125, "lost")
        assert server.run(run_id, payload(STARTS)).end == (125, "lost")
        assert server.ask("forget", run_id)[0] == 0

        assert starts(server) == ""
        assert not server.claim(run_id).exists()

    in_every_shell(tmp_path, check)


def test_a_run_whose_claim_is_deleted_ends_and_is_not_started_again(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        script = b'echo x >>"$HOME/starts"; exec sleep 30'
        call = server.start(run_id, payload(script))
        wait_until(lambda: starts(server), "it has started")

        server.claim(run_id).unlink()

        call.finish()
        assert call.end == (125, "lost")
        wait_until(lambda: not carriers(run_id), "the script is gone")
        assert server.run(run_id, payload(STARTS)).heads[2:] == ["x 125 forgotten 0 0"]
        assert starts(server) == "x\n"

    in_every_shell(tmp_path, check, grace_ms=300)


def test_rooms_are_made_ahead_from_the_second_run_on_and_go_with_the_call(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call = server.call("run")
        counts = []
        for _ in range(10):
            call.run(new_id(), b"true")
            counts.append(len(set(server.rooms()) - claimed(server)))
        # The last that was there has been taken, so there are more soon.
        assert counts[:-2] == [0, 7, 6, 5, 4, 3, 2, 1]
        wait_until(lambda: len(set(server.rooms()) - claimed(server)) == 7, "there are more")
        call.finish()

        assert set(server.rooms()) == claimed(server)

    in_every_shell(tmp_path, check)


def test_rooms_that_were_made_ahead_go_where_the_connection_is_gone(server: Server) -> None:
    call = server.call("run")
    call.run(new_id(), b"true")
    call.run(new_id(), b"true")
    last = new_id()
    call.send(server.message(last, payload(b"while sleep 0.1; do echo; done"), limit_seconds=20))
    call.read_until(lambda call: call.out != b"")
    assert set(server.rooms()) > claimed(server)

    assert call.process.stdout is not None
    call.process.stdout.close()

    wait_until(lambda: set(server.rooms()) == claimed(server), "they are gone")
    server.ask("signal", last, "cancel")


def test_rooms_that_were_deleted_are_made_anew(server: Server) -> None:
    call = server.call("run")
    assert [call.run(new_id(), b"echo %d" % each) for each in range(2)] == [b"0\n", b"1\n"]
    for room in set(server.rooms()) - claimed(server):
        shutil.rmtree(room)

    assert call.run(new_id(), b"echo 2") == b"2\n"


def test_the_place_of_the_claims_is_made_anew_too(server: Server) -> None:
    call = server.call("run")
    for _ in range(2):
        call.run(new_id(), b"true")
    shutil.rmtree(server.root / "runs")

    assert call.run(new_id(), b"echo 2") == b"2\n"


def test_rooms_are_made_ahead_only_where_a_run_had_one(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        call, forgotten = server.call("run"), new_id()
        for _ in range(8):
            call.run(new_id(), b"true")
        # It takes the last that is ready, and is then looked for everywhere.
        server.stage(call, forgotten, STARTS)
        assert server.ask("forget", forgotten)[0] == 0
        call.send(LAST_LINE)
        call.read_until(lambda call: call.heads[-1] == "x 125 forgotten 0 0")
        call.run(new_id(), b"true")
        call.finish()

        assert starts(server) == ""
        assert not (server.home / "elsewhere").exists()
        assert set(server.rooms()) == claimed(server)

    others = 'roots="/var/tmp/cronium-$uid /tmp/cronium-$uid"'
    in_every_shell(tmp_path, check, edits={others: 'roots="$HOME/elsewhere"'})


def make_former(server: Server, run_id: str) -> None:
    """Lays a run out as former artifacts did: all in one directory, and the claim a link in it."""
    room, claim = server.directory(run_id), server.claim(run_id)
    owner = server.owner(run_id)
    (room / "go").symlink_to(owner.read_text().strip())
    owner.unlink()
    (room / "calls").rename(room / f"calls.{room.name}")
    (room / "work").rename(room / f"work.{room.name}")
    shutil.rmtree(room / "in", ignore_errors=True)
    claim.unlink()
    room.rename(claim)


def test_a_run_of_a_former_artifact_is_found_and_forgotten(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        ended, lost = new_id(), new_id()
        server.run(ended, payload(b"echo former; exit 3"))
        call = server.start(lost, payload(b"echo begun; exec sleep 30"))
        call.read_until(lambda call: call.out == b"begun\n")
        lose(server, lost, call)
        server.wait_for_the_janitor(ended)
        for run_id in (ended, lost):
            make_former(server, run_id)

        listed = [
            line.split()[:2]
            for line in server.ask("list")[1].heads
            if ended in line or lost in line
        ]
        assert sorted(listed) == sorted([[ended, "ended"], [lost, "lost"]])
        again = server.run(ended, payload(STARTS))
        assert (again.state, again.out, again.end) == ("ended", b"former\n", (3, "exit"))
        again = server.run(lost, payload(STARTS))
        assert (again.out, again.end) == (b"begun\n", (125, "lost"))
        assert server.ask("forget", ended, lost)[0] == 0
        assert list((server.root / "runs").iterdir()) == []
        assert starts(server) == ""

    in_every_shell(tmp_path, check)


def test_the_janitor_removes_former_runs_and_claims_without_a_room(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        former, nobodys, gone, last = new_id(), new_id(), new_id(), new_id()
        server.run(former, payload(b"echo former"))
        server.wait_for_the_janitor(former)
        # Before any uptime, for the machine may have been up for minutes.
        (server.directory(former) / "began").write_text("-700000 0\n")
        make_former(server, former)
        server.claim(nobodys).touch()
        server.claim(gone).write_text("1-N0nce-1\n")
        long_ago = 1_500_000_000
        claims = (server.claim(nobodys), server.claim(gone))
        for path in (*server.claim(former).glob("exit.*"), *claims):
            os.utime(path, (long_ago, long_ago))
        for stamp in server.root.glob("swept.*"):
            stamp.unlink()

        server.run(last, payload(b""))

        server.wait_for_the_janitor(last)
        assert list((server.root / "runs").iterdir()) == [server.claim(last)]
        tombs = {path.name for path in (server.root / "forgotten").iterdir()}
        assert tombs == {former, nobodys, gone}

    in_every_shell(tmp_path, check, edits={"settle_s=3600": "settle_s=0"})


def watch_programs(server: Server) -> Path:
    """Where the names of those come that the runner starts from here on."""
    told = server.home / "programs"
    for name in ("bash", "cat", "dd", "env", "ln", "ls", "mkdir", "rm", "rmdir", "setsid", "sleep"):
        program = shutil.which(name)
        assert program is not None
        (server.bin / name).write_text(
            f'#!{program_of_sh()}\necho {name} >>{told}\nexec {program} "$@"\n'
        )
        (server.bin / name).chmod(0o700)
    return told


def program_of_sh() -> str:
    program = shutil.which("dash")
    assert program is not None
    return program


def test_a_later_run_takes_four_programs_of_which_one_waits(tmp_path: Path) -> None:
    with serving(tmp_path, "dash") as server:
        told = watch_programs(server)
        call = server.call("run")
        for _ in range(2):
            call.run(new_id(), b"true")
        ready(server)
        told.unlink()
        for number in range(1, 5):
            call.run(new_id(), b"true")
            ready(server)
            names = Counter(told.read_text().split())
            # The ticker may sleep on from one run to the next.
            assert names.pop("sleep", 0) <= number
            assert names == {"env": number, "setsid": number, "bash": number}
