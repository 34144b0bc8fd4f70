"""Host keys as they are written down: servers' addresses, given keys, known_hosts files."""

from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConnectError
from worker.remote.address import Address, parse_address
from worker.remote.given_keys import GivenKey, parse_given_key, parse_given_keys, public_line
from worker.remote.key_kinds import KINDS
from worker.remote.known_hosts import KnownHosts, KnownHostsFile

# Not made anew each time: keys stand in names of tests, which must be the same in every process.
KEY, OTHER = (
    asyncssh.import_public_key(f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{text}")
    for text in (
        "LFzkyCT/6VwRtzG5iLyBmo1NLB1c0JUKpfr9UGcDUSt",
        "BX2i6C09Ihv9qvdQhyGAUDmJ+ugB3bw9ozO5uwZFV5F",
    )
)
RSA = asyncssh.generate_private_key("ssh-rsa", key_size=2048).convert_to_public()
LINE, FINGERPRINT = public_line(KEY), KEY.get_fingerprint()
WEB = Address("web", 2222)


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("web-1", Address("web-1", 22)),
        ("web-1:2222", Address("web-1", 2222)),
        ("[web-1]:2222", Address("web-1", 2222)),
        ("[web-1]", Address("web-1", 22)),
        ("10.0.0.5:22", Address("10.0.0.5", 22)),
        ("::1", Address("::1", 22)),
        ("fe80::1%eth0", Address("fe80::1%eth0", 22)),
        ("[::1]", Address("::1", 22)),
        ("[::1]:2222", Address("::1", 2222)),
        ("[::ffff:10.0.0.5]:65535", Address("::ffff:10.0.0.5", 65535)),
    ],
)
def test_an_address_is_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":22", "web:", "web:0", "web:65536", "web:ssh", "[::1", "a b", "[]:22", "web:1:2"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  its text is the argument
        parse_address(text)


@given(st.sampled_from(["web-1", "10.0.0.5", "::1", "fd00::5"]), st.integers(1, 65535))
def test_an_address_is_read_as_it_was_written(host: str, port: int) -> None:
    assert parse_address(str(Address(host, port))) == Address(host, port)


# Given keys


@pytest.mark.parametrize("text", [LINE, f"{LINE} root@web", f"  {LINE}\n"])
def test_a_public_key_is_read_from_its_line(text: str) -> None:
    assert parse_given_key(text) == GivenKey(FINGERPRINT, LINE)


@pytest.mark.parametrize("text", [FINGERPRINT, f"{FINGERPRINT}=", f" {FINGERPRINT} "])
def test_a_fingerprint_will_do(text: str) -> None:
    assert parse_given_key(text) == GivenKey(FINGERPRINT)


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "SHA256:tooshort",
        FINGERPRINT[:-1],
        f"{FINGERPRINT}x",
        KEY.get_fingerprint("md5"),
        LINE.split()[1],
        LINE[:-20],
        f"web {LINE}",
        f"ssh-rsa {LINE.split()[1]}",
        asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode(),
    ],
)
def test_what_is_neither_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="key") as refusal:
        parse_given_key(text)

    words = [word for word in text.split() if len(word) > 6 and word not in KINDS]
    assert not [word for word in words if word in str(refusal.value)]


def test_several_keys_are_given_one_to_a_line() -> None:
    text = f"{LINE} web\n\n{OTHER.get_fingerprint()}\r\n"

    assert parse_given_keys(text) == (
        GivenKey(FINGERPRINT, LINE),
        GivenKey(OTHER.get_fingerprint()),
    )


@pytest.mark.parametrize(
    ("text", "reason"), [(f"{LINE}\nhunter2", "line 2: neither"), (" \n ", "holds no key")]
)
def test_of_several_the_faulty_line_is_named(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_given_keys(text)


@given(st.text(max_size=100))
def test_any_text_is_a_key_or_a_refusal(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whatever it says
        parse_given_keys(text)


# Files; what their lines mean is held against OpenSSH in tests/loopback/test_as_openssh.py


def listed(text: str, address: Address = WEB) -> set[str]:
    return {public_line(key) for key in KnownHosts(text).listed(address).keys}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("web", "no host name, or no key behind it"),
        ("@revoked web", "Invalid known hosts entry"),
        (f"@revoke web {LINE}", "Invalid known hosts marker: revoke"),
        (f"web {LINE[:-20]}", "Invalid public key"),
        ("@revoked * ssh-ed25519 AAAA", "Invalid public key"),
        (f"|1|AAAA {LINE}", "Invalid known hosts hash entry"),
        (f"|2|AAAA|AAAA {LINE}", "Invalid known hosts hash type: 2"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_fault_and_named(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"line 3: {reason}"):
        KnownHosts(f"# comment\nweb {LINE}\n{line}\n")


def test_a_key_of_an_unknown_kind_is_passed_over() -> None:
    text = f"[web]:2222 ssh-new AAAA\n[web]:2222 1024 35 1234\n[web]:2222 {LINE}\n"

    assert listed(text) == {LINE}


def test_comments_may_be_in_any_encoding(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(f"# Schlüssel\n[web]:2222 {LINE} Müller\n".encode("latin-1"))

    assert len(KnownHostsFile(file).read().listed(WEB).keys) == 1


def test_an_empty_name_is_nobodys() -> None:
    assert listed(f"db,,mail {LINE}\n, {OTHER.export_public_key().decode()}") == set()


def test_a_name_is_the_same_in_either_case() -> None:
    assert listed(f"[WEB]:2222 {LINE}", Address("Web", 2222)) == {LINE}


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"[web]:2222 {LINE}\n")
    file = KnownHostsFile(path)
    first = file.read()
    assert file.read() is first

    other = tmp_path / "other"
    other.write_text(f"@revoked * {LINE}\n")
    other.replace(path)
    second = file.read()
    path.write_text(f"@revoked * {LINE}\n[web]:2222 {LINE}\n")

    assert not second.listed(WEB).keys
    assert second.listed(WEB).revoked
    assert file.read().listed(WEB).keys


def test_a_file_that_cannot_be_read_any_more_is_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"@revoked * {LINE}\n")
    file = KnownHostsFile(path)
    file.read()

    path.write_text("nonsense\n")
    with pytest.raises(ConnectError, match=r"CRONIUM_SSH_KNOWN_HOSTS: .*: line 1"):
        file.read()
    with pytest.raises(ConnectError, match=r"CRONIUM_SSH_KNOWN_HOSTS: .*: line 1"):
        file.read()
    path.unlink()
    with pytest.raises(ConnectError, match="CRONIUM_SSH_KNOWN_HOSTS: No such file"):
        file.read()
    path.write_text(f"@revoked * {LINE}\n")

    assert file.read().listed(WEB).revoked
