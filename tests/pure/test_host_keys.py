"""Which host key is trusted, on what grounds, and what is said of one that is not."""

from dataclasses import replace

import asyncssh
import pytest

from worker.errors import HostKeyError
from worker.remote.address import Address
from worker.remote.given_keys import GivenKey, public_line
from worker.remote.host_certificate import fault_of
from worker.remote.host_keys import HostKeyCheck
from worker.remote.known_hosts import Listed
from worker.settings import HostKeyPolicy

PRIVATE, AUTHORITY_PRIVATE = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
RSA_PRIVATE = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
KEY, AUTHORITY, RSA = (
    each.convert_to_public() for each in (PRIVATE, AUTHORITY_PRIVATE, RSA_PRIVATE)
)
OTHER = asyncssh.generate_private_key("ecdsa-sha2-nistp256").convert_to_public()
WEB = Address("web", 2222)
ACCEPT_NEW, STRICT, OFF = HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.STRICT, HostKeyPolicy.OFF
FRESH = HostKeyCheck(ACCEPT_NEW, WEB)


def given(*keys: asyncssh.SSHKey) -> tuple[GivenKey, ...]:
    return tuple(GivenKey(key.get_fingerprint(), public_line(key)) for key in keys)


def refusal(check: HostKeyCheck, key: asyncssh.SSHKey = KEY) -> str:
    with pytest.raises(HostKeyError) as refused:
        check.judge(key)
    return str(refused.value)


def certificate(
    principals: str = "web", authority: asyncssh.SSHKey = AUTHORITY_PRIVATE, **options: object
) -> asyncssh.public_key.SSHOpenSSHCertificate:
    made = authority.generate_host_certificate(KEY, "id", principals=principals, **options)  # type: ignore[arg-type]  # a plain dict of mixed values
    assert isinstance(made, asyncssh.public_key.SSHOpenSSHCertificate)
    return made


def test_nothing_known_is_new_to_accept_new_refused_by_strict_and_let_pass_by_off() -> None:
    assert FRESH.judge(KEY) is True
    assert "is not in known_hosts" in refusal(replace(FRESH, policy=STRICT))
    assert replace(FRESH, policy=OFF).judge(KEY) is False


def test_what_is_pinned_is_not_new() -> None:
    assert replace(FRESH, pinned=public_line(KEY)).judge(KEY) is False


def test_another_key_than_the_pinned_one_is_refused_with_both_and_the_way_out() -> None:
    reason = refusal(replace(FRESH, pinned=public_line(OTHER)))

    assert reason == (
        f"host key changed: {OTHER.get_fingerprint()} is pinned, got {KEY.get_fingerprint()}; "
        "if that is right: cronium-worker hosts trust web:2222"
    )


def test_another_key_than_the_listed_one_is_refused_with_both() -> None:
    for policy in (ACCEPT_NEW, STRICT):
        reason = refusal(replace(FRESH, policy=policy, listed=Listed(keys=(OTHER, RSA))))

        assert reason == (
            f"host key changed: known_hosts has {OTHER.get_fingerprint()} or "
            f"{RSA.get_fingerprint()} for web:2222, got {KEY.get_fingerprint()}"
        )


def test_the_file_goes_before_the_pin() -> None:
    pinned = replace(FRESH, pinned=public_line(OTHER))

    assert replace(pinned, listed=Listed(keys=(KEY,))).judge(KEY) is False
    assert "known_hosts has" in refusal(replace(pinned, listed=Listed(keys=(RSA,))), OTHER)


def test_a_key_listed_for_the_name_alone_vouches_and_does_not_contradict() -> None:
    assert replace(FRESH, policy=STRICT, listed=Listed(elsewhere=(KEY,))).judge(KEY) is False
    assert replace(FRESH, listed=Listed(elsewhere=(OTHER,))).judge(KEY) is True


def test_a_given_key_alone_counts_under_every_policy() -> None:
    others = replace(FRESH, pinned=public_line(OTHER), listed=Listed(keys=(OTHER,)))
    for policy in (ACCEPT_NEW, STRICT, OFF):
        check = replace(others, policy=policy, given=given(RSA, KEY))

        assert check.judge(KEY) is False
        reason = refusal(check, OTHER)
        for key in (RSA, KEY, OTHER):
            assert key.get_fingerprint() in reason
        assert "hostKey" in reason


def test_what_is_revoked_is_refused_whatever_else_is_known_of_it() -> None:
    revoked = replace(
        FRESH,
        listed=Listed(keys=(KEY,), elsewhere=(KEY,), revoked=(KEY,)),
        pinned=public_line(KEY),
    )

    for check in (revoked, replace(revoked, given=given(KEY)), replace(revoked, policy=STRICT)):
        assert refusal(check) == f"known_hosts revokes the host key {KEY.get_fingerprint()}"


def test_a_certificate_is_trusted_by_its_authority_and_not_pinned() -> None:
    check = replace(FRESH, listed=Listed(authorities=(AUTHORITY,)), pinned=public_line(OTHER))

    assert check.judge(KEY, certificate()) is False
    assert replace(check, policy=STRICT).judge(KEY, certificate()) is False


def test_a_certificate_of_a_revoked_authority_is_refused() -> None:
    check = replace(FRESH, listed=Listed(authorities=(AUTHORITY,), revoked=(AUTHORITY,)))

    with pytest.raises(HostKeyError, match=r"revokes .* which signed the host key"):
        check.judge(KEY, certificate())


def test_a_certificate_that_does_not_hold_is_told_of_and_its_key_not_new() -> None:
    check = replace(FRESH, listed=Listed(authorities=(AUTHORITY,)))
    for each in (check, replace(check, policy=STRICT), replace(check, pinned=public_line(OTHER))):
        with pytest.raises(HostKeyError, match=r"; its certificate is for db, mail($|;)"):
            each.judge(KEY, certificate("db,mail"))


def test_the_key_of_a_certificate_that_does_not_hold_may_be_known_for_itself() -> None:
    check = replace(FRESH, listed=Listed(authorities=(AUTHORITY,)))

    assert replace(check, pinned=public_line(KEY)).judge(KEY, certificate("db")) is False
    listed = Listed(keys=(KEY,), authorities=(AUTHORITY,))
    assert replace(check, listed=listed).judge(KEY, certificate("db")) is False


def test_a_certificate_of_an_unknown_authority_is_as_if_there_were_none() -> None:
    check = replace(FRESH, listed=Listed(authorities=(OTHER,)))

    assert check.judge(KEY, certificate()) is True


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (certificate(), None),
        (certificate("db,web"), None),
        (certificate("w*"), None),
        (certificate("?eb"), None),
        (certificate("*.example.com"), "is for *.example.com"),
        (certificate("[w]eb"), "is for [w]eb"),
        (certificate("WEB"), "is for WEB"),
        (certificate("web", valid_before="20200101"), "is of no use: certificate expired"),
        (certificate("web", valid_after="20900101"), "is of no use: certificate not yet valid"),
        (certificate("web", RSA_PRIVATE), None),
        (certificate("web", RSA_PRIVATE, sig_alg="rsa-sha2-256"), None),
        (certificate("web", RSA_PRIVATE, sig_alg="ssh-rsa"), "is signed with SHA-1"),
        (certificate(()), "names no host"),  # type: ignore[arg-type]  # none at all
        (
            AUTHORITY_PRIVATE.generate_user_certificate(KEY, "id", principals="web"),
            "is of no use: invalid certificate type",
        ),
    ],
)
def test_a_certificate_speaks_for_a_host_or_says_why_not(
    made: asyncssh.public_key.SSHOpenSSHCertificate, fault: str | None
) -> None:
    assert fault_of(made, "Web") == fault


@pytest.mark.parametrize("kind", ["ssh-rsa", "ecdsa-sha2-nistp521", "ssh-ed25519"])
def test_the_signature_is_found_behind_a_key_of_every_kind(kind: str) -> None:
    key = asyncssh.generate_private_key(kind).convert_to_public()
    made = RSA_PRIVATE.generate_host_certificate(key, "id", principals="web", sig_alg="ssh-rsa")

    assert isinstance(made, asyncssh.public_key.SSHOpenSSHCertificate)
    assert fault_of(made, "web") == "is signed with SHA-1"


def test_a_server_is_asked_for_the_kinds_that_are_known_first() -> None:
    assert FRESH.algorithms()[0] == "ssh-ed25519"
    assert replace(FRESH, pinned=public_line(RSA)).algorithms()[:2] == [
        "rsa-sha2-512",
        "rsa-sha2-256",
    ]
    for listed in (Listed(keys=(OTHER,)), Listed(elsewhere=(OTHER,))):
        assert replace(FRESH, listed=listed).algorithms()[0] == "ecdsa-sha2-nistp256"
    asked = replace(FRESH, pinned=public_line(RSA), given=given(OTHER)).algorithms()
    assert asked[0] == "ecdsa-sha2-nistp256"
    assert sorted(asked) == sorted(FRESH.algorithms())


def test_certificates_are_asked_for_where_an_authority_is_listed() -> None:
    check = replace(FRESH, listed=Listed(keys=(RSA,), authorities=(AUTHORITY,)))

    asked = check.algorithms()
    assert asked[:2] == [f"rsa-sha2-{bits}-cert-v01@openssh.com" for bits in (512, 256)]
    assert asked[len(asked) // 2] == "rsa-sha2-512"
    for without in (FRESH, replace(check, given=given(KEY))):
        assert not any("cert" in name for name in without.algorithms())
