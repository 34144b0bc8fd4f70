"""The runner: output that its script empties, as `> /dev/stderr` does with a file."""

from pathlib import Path

from tests.process.runner_rig import Server, in_every_shell, new_id, payload

TOLD = "cronium: the script emptied its {0}, as > /dev/{0} does; >> /dev/{0} would not\n"


def test_what_is_printed_after_that_is_told_over_a_dropped_connection_too(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        script = (
            b"echo longer than that >&2; echo and this; sleep 1.5; echo two > /dev/stderr; sleep 1;"
            b"touch $HOME/mark; sleep 0.5; echo 3 > /dev/stdout; sleep 1.2; echo four >&2; exit 4"
        )
        call = server.start(run_id, payload(script))
        call.read_until(lambda call: call.err.endswith(TOLD.format("stderr").encode()))
        call.kill()
        before = (call.out, call.err)

        again = server.call("attach", run_id, *(str(len(stream)) for stream in before))
        again.finish()

        assert before == (
            b"and this\n",
            b"longer than that\ntwo\n" + TOLD.format("stderr").encode(),
        )
        assert (again.out, again.err) == (b"3\n", TOLD.format("stdout").encode() + b"four\n")
        assert again.end == (4, "exit")

    in_every_shell(tmp_path, check)


def test_a_worker_that_has_less_than_was_cut_goes_on_too(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        run_id = new_id()
        script = b"echo longer than that >&2; sleep 1.5; echo two > /dev/stderr; sleep 1.5"
        call = server.start(run_id, payload(script))
        call.read_until(lambda call: call.err.endswith(TOLD.format("stderr").encode()))
        call.kill()

        again = server.call("attach", run_id, "0", "5")
        again.finish()

        assert again.err == b"two\n" + TOLD.format("stderr").encode()
        assert again.end == (0, "exit")
        third = server.call("attach", run_id, "0", str(5 + len(again.err)))
        third.finish()
        assert (third.err, third.end) == (b"", (0, "exit"))

    in_every_shell(tmp_path, check)


def test_frames_keep_their_lengths_where_it_comes_between(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        script = b"printf 0123456789 >&2; sleep 0.7; : > /dev/stderr; sleep 1.6; echo x; exit 4"
        call = server.start(new_id(), payload(script))
        call.finish()

        assert call.err[:10] == bytes(10)
        assert (call.out, call.end) == (b"x\n", (4, "exit"))

    sending = "send_waiting() {\n"
    in_every_shell(tmp_path, check, edits={sending: f"{sending}    sleep 1.2\n"})
