"""The runner: the claim of a run, and the room that it names."""

import os
import shutil
from pathlib import Path

from tests.process.runner_rig import (
    Call,
    Server,
    carriers,
    in_every_shell,
    kill_if_alive,
    new_id,
    payload,
    wait_until,
)

NAMED = '    { echo "$token" >>"$claim"; } 2>/dev/null && return\n'
STARTS = b'echo x >>"$HOME/starts"; echo done'


def starts(server: Server) -> str:
    path = server.home / "starts"
    return path.read_text() if path.exists() else ""


def lose(server: Server, run_id: str, call: Call) -> None:
    """Kills all that knows of the run."""
    call.kill()
    kill_if_alive(server.supervisor(run_id))
    for pid in carriers(run_id):
        kill_if_alive(pid)


def one_ended_and_one_lost(server: Server) -> tuple[str, str]:
    ended, lost = new_id(), new_id()
    server.run(ended, payload(b"echo well; exit 3"))
    call = server.start(lost, payload(b"echo begun; exec sleep 30"))
    call.read_until(lambda call: call.out == b"begun\n")
    lose(server, lost, call)
    return ended, lost


def test_a_claim_that_is_just_being_made_is_waited_for(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        first = server.call("run")
        first.send(server.message(run_id, payload(STARTS), limit_seconds=60))
        wait_until(server.claim(run_id).exists, "it is claimed")

        second = server.run(run_id, payload(STARTS))

        first.finish()
        assert starts(server) == "x\n"
        # Whichever was the last to take over has all of it; the other may have heard nothing yet.
        assert b"done\n" in (first.out, second.out)
        assert all(call.out == b"done\n" or call.heads[-1] == "t" for call in (first, second))
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
        ended, lost = one_ended_and_one_lost(server)
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


def test_a_room_that_a_killed_supervisor_left_over_is_removed(tmp_path: Path) -> None:
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
        ended, lost = one_ended_and_one_lost(server)
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
        assert (again.state, again.out, again.end) == ("ended", b"well\n", (3, "exit"))
        again = server.run(lost, payload(STARTS))
        assert (again.out, again.end) == (b"begun\n", (125, "lost"))
        assert server.ask("forget", ended, lost)[0] == 0
        assert list((server.root / "runs").iterdir()) == []
        assert starts(server) == ""

    in_every_shell(tmp_path, check)


def test_the_janitor_removes_former_runs_and_claims_without_a_room(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        former, empty, nobodys, gone, last = (new_id() for _ in range(5))
        server.run(former, payload(b"echo former"))
        server.run(empty, payload(b"echo kept"))
        for run_id in (former, empty):
            server.wait_for_the_janitor(run_id)
        # Before any uptime, for the machine may have been up for minutes.
        (server.directory(former) / "began").write_text("-700000 0\n")
        make_former(server, former)
        server.claim(empty).write_text("")
        server.claim(nobodys).touch()
        server.claim(gone).write_text("1-N0nce-1\n")
        long_ago = 1_500_000_000
        claims = map(server.claim, (empty, nobodys, gone))
        for path in (*server.claim(former).glob("exit.*"), *claims):
            os.utime(path, (long_ago, long_ago))
        for stamp in server.root.glob("swept.*"):
            stamp.unlink()

        server.run(last, payload(b""))

        server.wait_for_the_janitor(last)
        assert set((server.root / "runs").iterdir()) == {server.claim(empty), server.claim(last)}
        assert server.ask("attach", empty, "0", "0")[1].out == b"kept\n"
        tombs = {path.name for path in (server.root / "forgotten").iterdir()}
        assert tombs == {former, nobodys, gone}

    in_every_shell(tmp_path, check, edits={"settle_s=3600": "settle_s=0"})
