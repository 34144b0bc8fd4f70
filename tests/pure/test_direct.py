"""Servers as an operator names them, and how far a call is."""

import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.direct.last import keep_last, unsuccessful
from worker.direct.screen import progress
from worker.direct.servers import NamedServer, distinct, parse_server, read_servers
from worker.dispatch.result import Outcome
from worker.errors import StateError
from worker.remote.address import Address, is_host

WORDS = st.text(string.ascii_letters + string.digits + "-._", min_size=1, max_size=20)
# Not all words are: one of dots has an empty part.
HOSTS = WORDS.filter(is_host)
SERVERS = st.builds(
    NamedServer,
    WORDS,
    WORDS,
    st.builds(Address, HOSTS | st.just("fd00::5"), st.integers(1, 65535)),
)


@given(SERVERS)
def test_a_server_is_read_as_it_is_written(server: NamedServer) -> None:
    assert parse_server(f"{server.name}={server}", user="me") == server


def test_what_is_left_out_has_a_default() -> None:
    assert parse_server("web:2222", user="me") == NamedServer(
        "web:2222", "me", Address("web", 2222)
    )
    assert parse_server("a=web", user="me") == NamedServer("a", "me", Address("web"))


@given(st.text(max_size=30))
def test_any_text_is_a_server_or_a_fault_in_words(text: str) -> None:
    server, told = None, ""
    try:
        server = parse_server(text, user="me")
    except ValueError as error:
        told = str(error)

    if server is None:
        assert "expected [NAME=][USER@]HOST[:PORT]" in told
    else:
        assert (server.name + server.user).isprintable()


def test_a_file_has_a_server_to_a_line_and_its_faults_name_theirs() -> None:
    text = "# web\n\nweb-1=deploy@10.0.0.1 # the first\nroot@db\n"

    assert [each.name for each in read_servers(text, user="me")] == ["web-1", "db"]
    with pytest.raises(ValueError, match="line 5: 'a b' is no server"):
        read_servers(text + "a b", user="me")


def test_a_server_given_twice_is_one_and_a_name_is_not_for_two() -> None:
    one, other = (parse_server(text, user="me") for text in ("a=h1", "a=h2"))

    assert distinct([one, one]) == (one,)
    with pytest.raises(ValueError, match="a is both me@h1 and me@h2"):
        distinct([one, other])


@given(st.dictionaries(WORDS, st.none() | st.sampled_from(Outcome), max_size=5))
def test_the_last_call_is_known_by_what_did_not_succeed(
    tmp_path_factory: pytest.TempPathFactory, outcomes: dict[str, Outcome | None]
) -> None:
    folder = tmp_path_factory.mktemp("last")
    servers = [NamedServer(name, "me", Address("h", 2222)) for name in outcomes]

    keep_last(folder, servers, {name: each for name, each in outcomes.items() if each})

    assert unsuccessful(folder) == [
        server for server in servers if outcomes[server.name] is not Outcome.SUCCESS
    ]
    assert [path.name for path in folder.iterdir()] == ["last-exec.json"]


def test_a_last_call_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "last-exec.json").write_text("{")

    with pytest.raises(StateError, match=r"last-exec\.json"):
        unsuccessful(tmp_path)


def test_a_last_call_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "last-exec.json").mkdir()

    with pytest.raises(StateError, match=r"last-exec\.json: Is a directory"):
        keep_last(tmp_path, [], {})

    assert [path.name for path in tmp_path.iterdir()] == ["last-exec.json"]


def test_progress_counts_each_server_once() -> None:
    outcomes = Counter(Outcome)
    outcomes[Outcome.SUCCESS] = 12

    assert progress(30, 3, outcomes) == "30 servers: 12 done, 3 running, 5 failed, 1 unreachable"
