"""Keys and passwords in every form in which they come."""

import base64
from collections.abc import Callable

import asyncssh
import pytest
from cryptography.hazmat.primitives import serialization as s11n
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import AuthenticationError, SealedValueError
from worker.remote.credentials import OpenedCredential, open_credential
from worker.remote.target import Credential
from worker.sealing import SealingKey, may_be_sealed
from worker.secret import Secret

KEY = SealingKey(Secret("5a" * 32))
OTHER_KEY = SealingKey(Secret("a5" * 32))
PHRASE = "correct horse"
OPENSSH, PKCS1, PKCS8 = (
    s11n.PrivateFormat.OpenSSH,
    s11n.PrivateFormat.TraditionalOpenSSL,
    s11n.PrivateFormat.PKCS8,
)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
KINDS: dict[str, tuple[PrivateKey, s11n.PrivateFormat]] = {
    "ed25519 OpenSSH": (ED25519, OPENSSH),
    "ed25519 PKCS8": (ED25519, PKCS8),
    "RSA OpenSSH": (RSA, OPENSSH),
    "RSA PKCS1": (RSA, PKCS1),
    "RSA PKCS8": (RSA, PKCS8),
    "EC OpenSSH": (EC, OPENSSH),
    "EC SEC1": (EC, PKCS1),
    "EC PKCS8": (EC, PKCS8),
}
FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "without a last line end": lambda text: text.strip(),
    "with blank lines around": lambda text: f"\n\n  {text}\n\n",
    "with CRLF": lambda text: text.replace("\n", "\r\n"),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(text.encode()).decode(),
    "sealed": KEY.seal,
}


def pem(kind: str, phrase: str | None = None) -> str:
    key, form = KINDS[kind]
    encryption = s11n.BestAvailableEncryption(phrase.encode()) if phrase else s11n.NoEncryption()
    return key.private_bytes(s11n.Encoding.PEM, form, encryption).decode()


def public(kind: str) -> bytes:
    key, _ = KINDS[kind]
    return key.public_key().public_bytes(s11n.Encoding.OpenSSH, s11n.PublicFormat.OpenSSH)


def opened(
    private_key: str | None = None,
    passphrase: str | None = None,
    password: str | None = None,
    key: SealingKey | None = KEY,
) -> OpenedCredential:
    credential = Credential(*map(hidden, (private_key, passphrase, password)))
    return open_credential(credential, key)


def hidden(text: str | None) -> Secret | None:
    return None if text is None else Secret(text)


def is_key(credential: OpenedCredential, kind: str) -> bool:
    assert credential.key is not None
    assert credential.password is None
    shown = credential.key.export_public_key("openssh").split()[:2]
    return shown == public(kind).split()[:2]


def refusal(private_key: str | None = None, passphrase: str | None = None) -> str:
    with pytest.raises(AuthenticationError) as caught:
        opened(private_key, passphrase)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_read_in_every_form(kind: str, form: str) -> None:
    assert is_key(opened(FORMS[form](pem(kind))), kind)


@pytest.mark.parametrize("kind", ["ed25519 OpenSSH", "RSA PKCS1", "EC SEC1", "RSA PKCS8"])
def test_an_encrypted_key_is_opened_with_its_passphrase(kind: str) -> None:
    text = pem(kind, PHRASE)

    assert is_key(opened(text, PHRASE), kind)
    assert is_key(opened(KEY.seal(text), KEY.seal(PHRASE)), kind)


@pytest.mark.parametrize("kind", ["ed25519 OpenSSH", "RSA PKCS1", "EC SEC1", "RSA PKCS8"])
def test_an_encrypted_key_without_its_passphrase_says_so(kind: str) -> None:
    text = pem(kind, PHRASE)

    assert refusal(private_key=text) == "the private key needs a passphrase"
    wrong = refusal(private_key=text, passphrase="wrong")
    assert wrong == "the private key's passphrase is wrong"


def test_a_passphrase_that_is_not_needed_does_no_harm() -> None:
    assert is_key(opened(pem("ed25519 OpenSSH"), PHRASE), "ed25519 OpenSSH")


def test_a_password_is_taken_as_it_is_or_opened() -> None:
    assert opened(password="hunter2").password == Secret("hunter2")
    assert opened(password=KEY.seal("hunter2")).password == Secret("hunter2")


def test_a_password_that_only_looks_sealed_is_taken_as_it_is() -> None:
    looks_sealed = "QUJD" * 12
    assert may_be_sealed(looks_sealed)

    taken = opened(password=looks_sealed)

    assert taken.password == Secret(looks_sealed)
    assert taken.doubt == "; the password looks sealed, and CRONIUM_ENCRYPTION_KEY does not open it"


def test_a_sealed_password_without_our_key_is_a_reason_to_doubt_it() -> None:
    sealed = Credential(password=Secret(KEY.seal("hunter2")))

    assert open_credential(sealed, None).doubt.endswith("CRONIUM_ENCRYPTION_KEY is not set")
    assert (open_credential(sealed, KEY).doubt, opened(password="hunter2").doubt) == ("", "")


def test_the_key_goes_before_the_password() -> None:
    both = opened(pem("EC OpenSSH"), password="hunter2")

    assert is_key(both, "EC OpenSSH")


def test_neither_key_nor_password_is_a_refusal_of_its_own() -> None:
    assert refusal() == "the server entry has neither a private key nor a password"


def test_a_sealed_key_without_our_key_says_what_to_set() -> None:
    with pytest.raises(AuthenticationError, match="CRONIUM_ENCRYPTION_KEY is not set"):
        opened(KEY.seal(pem("ed25519 OpenSSH")), key=None)


def test_a_key_sealed_with_another_key_says_so() -> None:
    reason = refusal(private_key=OTHER_KEY.seal(pem("ed25519 OpenSSH")))

    assert "sealed with another key, or damaged" in reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hunter2", "the private key is not a key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519", "the private key is not a key"),
        # An id of its own: the key is another one in each process that collects the tests.
        pytest.param(
            public("ed25519 OpenSSH").decode(), "the private key is not a key", id="public key"
        ),
        ("klíč", "the private key is not a key"),
        ("   ", "the private key is not a key"),
        (
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
            "the private key is damaged or of an unknown form",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            "the private key is damaged or of an unknown form",
        ),
        (pem("RSA PKCS1")[:300], "the private key is damaged or of an unknown form"),
        (pem("ed25519 OpenSSH")[:200], "the private key is damaged or of an unknown form"),
    ],
)
def test_what_is_no_key_is_refused_with_its_reason(text: str, reason: str) -> None:
    assert refusal(private_key=text) == reason


@given(st.sampled_from(sorted(KINDS)), st.integers(40, 1000), st.text("AZaz09+/=-\n", max_size=6))
def test_a_damaged_key_is_a_key_or_a_refusal(kind: str, at: int, noise: str) -> None:
    text = pem(kind)
    damaged = text[:at] + noise + text[at + len(noise) + 1 :]

    try:
        opened(damaged)
    except AuthenticationError as error:
        assert "key" in str(error)  # noqa: PT017  some damage does not matter


@given(st.text(max_size=100))
def test_any_text_is_a_key_or_a_refusal(text: str) -> None:
    assert "key" in refusal(private_key=text)


def test_no_refusal_shows_the_secret() -> None:
    text = pem("ed25519 OpenSSH", PHRASE)

    reasons = [
        refusal(private_key=text, passphrase="wr0ng"),
        refusal(private_key=text[:150]),
        refusal(private_key="hunter2"),
    ]

    body = text.splitlines()[1]
    assert not [each for each in reasons for secret in ("wr0ng", "hunter2", body) if secret in each]


def test_an_opened_credential_shows_nothing() -> None:
    assert "hunter2" not in repr(opened(password="hunter2"))
    assert isinstance(opened(pem("EC SEC1")).key, asyncssh.SSHKey)
    assert "key=" not in repr(opened(pem("EC SEC1")))


@given(st.text(max_size=200))
def test_what_was_sealed_opens_and_looks_it(text: str) -> None:
    sealed = KEY.seal(text)

    assert KEY.open(sealed) == text
    assert may_be_sealed(sealed) or not text


@given(
    st.one_of(
        st.text(max_size=100), st.binary(max_size=80).map(lambda b: base64.b64encode(b).decode())
    )
)
def test_what_was_not_sealed_does_not_open(text: str) -> None:
    assert may_be_sealed(text) in (True, False)
    with pytest.raises(SealedValueError):
        KEY.open(text)


def test_a_sealed_value_has_the_apps_form() -> None:
    raw = base64.b64decode(KEY.seal("hello"))

    opened = AESGCM(b"\x5a" * 32).decrypt(raw[:16], raw[16:], b"cronium-server-encryption")
    assert opened == b"hello"
    assert len(raw) == 16 + len(b"hello") + 16


@pytest.mark.parametrize("key", ["", "5a" * 31, "5a" * 33, "zz" * 32, "5a" * 32 + "\n"])
def test_a_sealing_key_is_64_hexadecimal_digits(key: str) -> None:
    with pytest.raises(SealedValueError):
        SealingKey(Secret(key))
