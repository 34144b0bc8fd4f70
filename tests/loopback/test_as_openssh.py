"""A known_hosts file says to the worker what it says to OpenSSH's own client."""

import dataclasses
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.loopback.openssh import Judges, certify, hashed, make_key
from worker.settings import HostKeyPolicy

ACCEPT_NEW, STRICT = HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.STRICT
POLICIES = (ACCEPT_NEW, STRICT)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Judges:
    if not shutil.which("ssh") or not shutil.which("/usr/sbin/sshd"):
        pytest.skip("OpenSSH's client or server is not installed")
    folder = tmp_path_factory.mktemp("judges")
    key, other, authority = (make_key(folder / name) for name in ("host", "other", "authority"))
    return Judges(folder, key, other, authority)


def certified(judges: Judges, *options: str, principals: str = "web") -> Judges:
    """The same, where the server shows a certificate."""
    authority, key = judges.folder / "authority", judges.folder / "host"
    shown = certify(authority, key, *options, principals=principals)
    return dataclasses.replace(judges, certificate=shown)


def filled(lines: str, judges: Judges) -> str:
    """`lines` with keys in the place of their names at the lines' ends."""
    keys = {"KEY": judges.key, "OTHER": judges.other, "AUTHORITY": judges.authority}
    return re.sub(r" (KEY|OTHER|AUTHORITY)\b", lambda match: f" {keys[match[1]]}", lines)


def verdicts(judges: Judges, lines: str, host: str, port: int) -> dict[str, tuple[bool, bool]]:
    """OpenSSH's and the worker's, by policy."""
    return {
        policy: (
            judges.openssh(lines, host, port, policy),
            judges.worker(lines, host, port, policy),
        )
        for policy in POLICIES
    }


@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize(
    "lines",
    [
        "",
        "# web KEY\n\n  \n",
        "web KEY",
        "web OTHER",
        "web KEY\nweb OTHER",
        "web OTHER\n[web]:2222 KEY",
        "web KEY\n[web]:2222 OTHER",
        "[web]:2222 KEY",
        "[web]:2222 OTHER",
        "[web]:2223 KEY",
        "[web]:22 KEY",
        "WEB KEY",
        "db,Web,mail KEY a comment",
        "db,,mail KEY",
        "* KEY",
        "* OTHER",
        "w?b KEY",
        "*,!web KEY",
        "*,!db KEY",
        "!web,* KEY",
        "*,![web]:2222 KEY",
        "[*]:2222 KEY",
        "[w*]:* KEY",
        "web-1 KEY",
        "we KEY",
        "w[e]b KEY",
        "@revoked * KEY",
        "@revoked * OTHER",
        "@revoked db KEY",
        "web KEY\n@revoked * KEY",
        "[web]:2222 KEY\n@revoked [web]:2222 KEY",
        "@cert-authority * KEY",
        "  web   KEY",
        "web\tKEY",
        "web ssh-unknown AAAA\nweb KEY",
        "web 1024 35 1234567\nweb KEY",
    ],
)
def test_a_file_means_the_same(judges: Judges, lines: str, port: int) -> None:
    written = filled(lines, judges)

    for policy, (openssh, worker) in verdicts(judges, written, "web", port).items():
        assert worker == openssh, policy


@pytest.mark.parametrize("host", ["127.0.0.1", "fd00::5"])
@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize("names", ["HOST", "[HOST]:2222", "127.0.0.0/8,fd00::/16", "127.0.*"])
def test_an_address_is_a_name_like_another(
    judges: Judges, names: str, host: str, port: int
) -> None:
    lines = f"{names.replace('HOST', host)} {judges.key}\n"

    for policy, (openssh, worker) in verdicts(judges, lines, host, port).items():
        assert worker == openssh, policy


@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize("names", ["web", "[web]:2222", "db"])
def test_hashed_names_mean_the_same(judges: Judges, names: str, port: int) -> None:
    lines = hashed(f"{names} {judges.key}\n", judges.folder)
    assert lines.startswith("|1|")

    for policy, (openssh, worker) in verdicts(judges, lines, "web", port).items():
        assert worker == openssh, policy


name = st.sampled_from(
    ["web", "db", "[web]:2222", "[db]:2222", "*", "w*", "[w?b]:2222", "!web", "!db", "![web]:2222"]
)
line = st.tuples(
    st.sampled_from(["", "", "@revoked ", "@cert-authority "]),
    st.lists(name, min_size=1, max_size=3).map(",".join),
    st.sampled_from(["KEY", "OTHER", "AUTHORITY"]),
).map(lambda parts: f"{parts[0]}{parts[1]} {parts[2]}\n")


some_files = settings(
    max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
files = st.lists(line, max_size=4).map("".join)
ports = st.sampled_from([22, 2222])


@some_files
@given(lines=files, port=ports)
def test_any_file_means_the_same_or_trusts_less(judges: Judges, lines: str, port: int) -> None:
    written = filled(lines, judges)

    for policy, (openssh, worker) in verdicts(judges, written, "web", port).items():
        # Revoked for the name is revoked on its every port, which OpenSSH forgets.
        is_stricter = port != 22 and "@revoked" in lines and not worker
        assert worker == openssh or is_stricter, policy


@some_files
@given(lines=files, port=ports)
def test_no_file_trusts_more_where_there_is_a_certificate(
    judges: Judges, lines: str, port: int
) -> None:
    written = filled(lines, judges)

    for openssh, worker in verdicts(certified(judges), written, "web", port).values():
        assert openssh or not worker


def test_what_is_revoked_for_a_name_is_revoked_on_its_every_port(judges: Judges) -> None:
    lines = f"[web]:2222 {judges.key}\n@revoked web {judges.key}\n"

    for openssh, worker in verdicts(judges, lines, "web", 2222).values():
        assert (openssh, worker) == (True, False)


@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize(
    "lines",
    [
        "@cert-authority web AUTHORITY",
        "@cert-authority * AUTHORITY",
        "@cert-authority w*,!web AUTHORITY",
        "@cert-authority db AUTHORITY",
        "@cert-authority [web]:2222 AUTHORITY",
        "@cert-authority web OTHER",
        "@cert-authority web OTHER\nweb KEY",
        "@cert-authority web OTHER\nweb OTHER",
        "@cert-authority web AUTHORITY\nweb OTHER",
        "@cert-authority [web]:2222 OTHER\n@cert-authority web AUTHORITY",
        "@cert-authority * AUTHORITY\n@revoked * AUTHORITY",
        "@cert-authority * AUTHORITY\n@revoked * KEY",
        "web AUTHORITY",
        "web KEY",
    ],
)
def test_an_authority_means_the_same(judges: Judges, lines: str, port: int) -> None:
    written = filled(lines, judges)

    for policy, (openssh, worker) in verdicts(certified(judges), written, "web", port).items():
        assert worker == openssh, policy


@pytest.mark.parametrize(
    ("principals", "options"),
    [
        ("web", ()),
        ("db,web,mail", ()),
        ("db", ()),
        ("WEB", ()),
        ("*.example.com", ()),
        ("web", ("-V", "20200101:20200201")),
        ("web", ("-V", "20900101:20910201")),
        ("web", ("-V", "20200101:20910201")),
        ("web", ("-O", "critical:made-up=1")),
    ],
)
def test_a_certificate_means_the_same(
    judges: Judges, principals: str, options: tuple[str, ...]
) -> None:
    lines = f"@cert-authority * {judges.authority}\n"
    shows_it = certified(judges, *options, principals=principals)

    openssh, worker = verdicts(shows_it, lines, "web", 22)[STRICT]
    assert worker == openssh
