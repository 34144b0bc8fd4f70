"""The configuration from the environment."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import SettingsError
from worker.secret import Secret
from worker.settings import (
    ExitCodePolicy,
    HostKeyPolicy,
    LogFormat,
    LogLevel,
    Settings,
)
from worker.settings.environment import load, unknown_variables
from worker.settings.variables import VARIABLES
from worker.values import parse_duration

ENDPOINT = "https://cronium.example.com"
TOKEN = "s3cr3t-t0k3n"  # noqa: S105  opens nothing
LEAST = {"CRONIUM_API_ENDPOINT": ENDPOINT, "CRONIUM_API_TOKEN": TOKEN}


def loaded(**changes: str) -> Settings:
    return load(LEAST | {f"CRONIUM_{name}": value for name, value in changes.items()})


def faults(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(environ)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


def fault_of(name: str, value: str) -> str:
    (fault,) = faults(LEAST | {f"CRONIUM_{name}": value})
    return fault


def test_an_endpoint_and_a_token_are_enough() -> None:
    settings = load(LEAST)

    assert settings.api.endpoint == f"{ENDPOINT}/api/internal"
    assert settings.api.token.value == Secret(TOKEN)
    assert settings.orchestrator_id is None
    assert settings.encryption_key is None
    assert settings.jobs.max_concurrent == 5
    assert settings.jobs.poll_batch_size == 10
    assert settings.jobs.drain_seconds == 25
    assert settings.jobs.exit_code_policy is ExitCodePolicy.SUM
    assert settings.jobs.output_limit_bytes == 1024**2
    assert settings.jobs.run_max_output_bytes == 1024**3
    assert settings.phases.setup_seconds == 300
    assert settings.phases.cleanup_seconds == 60
    assert settings.phases.max_execution_seconds == 86400
    assert settings.ssh.host_keys is HostKeyPolicy.ACCEPT_NEW
    assert settings.ssh.runner_verify_after_seconds == 3600
    assert (settings.logs.level, settings.logs.format) == (LogLevel.INFO, LogFormat.AUTO)
    assert settings.logs.output


@pytest.mark.parametrize(
    "written",
    [
        "https://h.example",
        "https://h.example/",
        "https://h.example/api/internal",
        "https://h.example/api/internal/",
        "  https://h.example  ",
    ],
)
def test_an_endpoint_may_be_given_with_or_without_its_path(written: str) -> None:
    assert loaded(API_ENDPOINT=written).api.endpoint == "https://h.example/api/internal"


def test_an_endpoint_keeps_its_port_and_what_stands_before_its_path() -> None:
    endpoint = loaded(API_ENDPOINT="http://[::1]:3000/cronium").api.endpoint

    assert endpoint == "http://[::1]:3000/cronium/api/internal"


@pytest.mark.parametrize(
    "written",
    ["cronium", "ftp://h", "http://", "//h", "http://[::1", "http://h:99999", "http://h:x",
     "http://a..b", f"http://{'a' * 64}", "http://a b", "http://h\nx", "http://h/?a=b",
     "http://h/#a", "file:///etc/passwd"],
)  # fmt: skip
def test_an_endpoint_that_is_no_address_is_a_fault(written: str) -> None:
    assert fault_of("API_ENDPOINT", written).startswith("CRONIUM_API_ENDPOINT: ")


@pytest.mark.parametrize("scheme", ["https", "ftp"])
def test_a_password_in_the_endpoint_is_refused_and_not_shown(scheme: str) -> None:
    fault = fault_of("API_ENDPOINT", f"{scheme}://me:hunter2@h.example")

    assert "hunter2" not in fault


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("90", 90),
        ("0.5", 0.5),
        ("250ms", 0.25),
        ("1d2h3m4s5ms", 93784.005),
        ("1m1ms", 60.001),
    ],
)
def test_a_duration_is_a_number_of_seconds_or_has_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "1x", "1h30", "-5s", "+5s", "1 h", "1e3", "1,5h", "h1", "1..5s", ".5s", "5.s", "inf",
     "nan", "1H", "٣s", "1h\n"],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}\\Z"):
        parse_duration(text)


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        assert parse_duration(text) >= 0
    except ValueError as error:
        assert str(error) == text  # noqa: PT017  any text may be a duration too


@pytest.mark.parametrize(
    ("text", "size"),
    [("2048", 2048), ("2KiB", 2048), ("2 kib", 2048), ("2048B", 2048), ("4MiB", 4 * 1024**2)],
)
def test_a_size_is_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert loaded(OUTPUT_LIMIT=text).jobs.output_limit_bytes == size


@pytest.mark.parametrize("text", ["1023", "5MiB", "1MB", "-1", "1.5MiB", "MiB", "9" * 5000])
def test_what_is_no_size_or_out_of_bounds_is_a_fault(text: str) -> None:
    assert fault_of("OUTPUT_LIMIT", text).endswith("expected 1KiB to 4MiB")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBS_MAX_CONCURRENT", "0"),
        ("JOBS_MAX_CONCURRENT", "1001"),
        ("JOBS_MAX_CONCURRENT", "five"),
        ("JOBS_MAX_CONCURRENT", "9" * 5000),
        ("JOBS_POLL_BATCH_SIZE", "1.5"),
        ("SETUP_TIMEOUT", "0s"),
        ("SETUP_TIMEOUT", "2h"),
        ("CLEANUP_TIMEOUT", "soon"),
        ("MAX_EXECUTION_TIMEOUT", "31d"),
        ("DRAIN_TIMEOUT", "9" * 400),
        ("EXIT_CODE_POLICY", "max"),
        ("SSH_HOST_KEYS", "yes"),
        ("SSH_KNOWN_HOSTS", "/no/such/file"),
        ("API_CA", "/no/such/file"),
        ("API_CA", __file__),
        ("LOGGING_LEVEL", "trace"),
        ("LOGGING_FORMAT", "xml"),
        ("LOG_OUTPUT", "1"),
        ("ORCHESTRATOR_ID", "a b"),
        ("ORCHESTRATOR_ID", "x" * 201),
    ],
)
def test_a_fault_names_the_variable_its_value_and_what_is_expected(name: str, value: str) -> None:
    fault = fault_of(name, value)

    assert fault.startswith(f"CRONIUM_{name}: {value!r} ")
    assert "; expected " in fault


def test_all_faults_are_told_at_once() -> None:
    told = faults(
        {
            "CRONIUM_API_ENDPOINT": "nowhere",
            "CRONIUM_SETUP_TIMEOUT": "soon",
            "CRONIUM_ENCRYPTION_KEY": "abc",
            "CRONIUM_LOG_OUTPUT": "maybe",
        }
    )

    named = sorted(fault.split(":")[0] for fault in told)
    assert named == [
        "CRONIUM_API_ENDPOINT",
        "CRONIUM_API_TOKEN",
        "CRONIUM_ENCRYPTION_KEY",
        "CRONIUM_LOG_OUTPUT",
        "CRONIUM_SETUP_TIMEOUT",
    ]


@pytest.mark.parametrize("value", ["", "   "])
def test_an_empty_variable_is_one_that_is_not_set(value: str) -> None:
    assert loaded(SETUP_TIMEOUT=value).phases.setup_seconds == 300
    (fault,) = faults(LEAST | {"CRONIUM_API_TOKEN": value})
    assert fault.startswith("CRONIUM_API_TOKEN: not set; expected ")


@pytest.mark.parametrize(
    ("name", "value"), [("ENCRYPTION_KEY", "f00d" * 15), ("API_TOKEN", "tok€n-hunter2")]
)
def test_a_secret_at_fault_is_not_shown(name: str, value: str) -> None:
    fault = fault_of(name, value)

    assert value not in fault
    assert fault.startswith(f"CRONIUM_{name}: its value ")


def test_settings_show_no_secret() -> None:
    key = "0123456789abcdef" * 4

    shown = repr(loaded(ENCRYPTION_KEY=key))

    assert TOKEN not in shown
    assert key not in shown


def test_a_secret_may_be_given_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    environ = {"CRONIUM_API_ENDPOINT": ENDPOINT, "CRONIUM_API_TOKEN_FILE": str(file)}

    source = load(environ).api.token

    assert source.value == Secret("from-file")
    assert source.file == file


def test_a_secret_given_as_a_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    environ = {"CRONIUM_API_ENDPOINT": ENDPOINT, "CRONIUM_API_TOKEN_FILE": str(file)}
    source = load(environ).api.token

    file.write_text("new\n")

    assert source.read() == Secret("new")


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"two words", None])
def test_a_secret_whose_file_became_unusable_stays_as_it_was(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    environ = {"CRONIUM_API_ENDPOINT": ENDPOINT, "CRONIUM_API_TOKEN_FILE": str(file)}
    source = load(environ).api.token

    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    assert source.read() == Secret("old")


def test_a_secret_given_twice_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file")

    (fault,) = faults(LEAST | {"CRONIUM_API_TOKEN_FILE": str(file)})

    assert fault.startswith("CRONIUM_API_TOKEN: given twice")
    assert TOKEN not in fault


@pytest.mark.parametrize("name", ["API_TOKEN", "ENCRYPTION_KEY"])
@pytest.mark.parametrize("content", [None, b"", b"\xff"])
def test_a_secrets_file_that_holds_none_is_a_fault(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    environ = LEAST | {f"CRONIUM_{name}_FILE": str(file)}
    if name == "API_TOKEN":
        del environ["CRONIUM_API_TOKEN"]

    (fault,) = faults(environ)

    assert fault.startswith(f"CRONIUM_{name}_FILE: ")
    assert str(file) in fault


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/worker")

    assert loaded(STATE_DIR="~/state").state_dir == Path("/home/worker/state")


def test_a_path_below_a_home_that_nobody_has_is_a_fault() -> None:
    assert "home directory" in fault_of("STATE_DIR", "~nobody-of-that-name/state")


def test_an_unknown_variable_is_a_warning_with_the_nearest_name() -> None:
    warnings = unknown_variables(
        LEAST | {"CRONIUM_SETUP_TIMOUT": "5s", "CRONIUM_ZZ8": "1", "PATH": "/bin"}
    )

    assert warnings == (
        "CRONIUM_SETUP_TIMOUT is not a setting of this program; "
        "did you mean CRONIUM_SETUP_TIMEOUT?",
        "CRONIUM_ZZ8 is not a setting of this program",
    )


def test_every_variable_of_this_program_is_known() -> None:
    environ = {variable.name: "x" for variable in VARIABLES} | {
        f"{variable.name}_FILE": "x" for variable in VARIABLES if variable.secret
    }

    assert unknown_variables(environ) == ()


texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)


@given(st.dictionaries(st.sampled_from([v.name for v in VARIABLES]), texts))
def test_any_environment_is_settings_or_faults(environ: dict[str, Any]) -> None:
    try:
        load(environ)
    except SettingsError as error:
        assert all(fault.startswith("CRONIUM_") for fault in error.faults)  # noqa: PT017  or none


RUNTIME_URL = "http://runtime:8081"
JWT_SECRET = "a-secret-of-the-app-32-characters"  # noqa: S105  opens nothing
RUNTIME = {"CRONIUM_RUNTIME_URL": RUNTIME_URL, "CRONIUM_JWT_SECRET": JWT_SECRET}


def test_the_runtime_api_is_there_when_its_url_and_secret_are() -> None:
    assert load(LEAST).runtime is None

    runtime = load(LEAST | RUNTIME | {"CRONIUM_RUNTIME_URL": f"{RUNTIME_URL}/base/"}).runtime

    assert runtime is not None
    assert runtime.url == f"{RUNTIME_URL}/base"
    assert runtime.jwt_secret.value == Secret(JWT_SECRET)
    assert JWT_SECRET not in repr(runtime)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("CRONIUM_RUNTIME_URL", "CRONIUM_JWT_SECRET"),
        ("CRONIUM_JWT_SECRET", "CRONIUM_RUNTIME_URL"),
    ],
)
def test_one_half_of_the_runtime_api_is_a_fault_that_names_the_other(
    given: str, missing: str
) -> None:
    (fault,) = faults(LEAST | {given: RUNTIME[given]})

    assert fault.startswith(f"{missing}: not set, but {given} is")
    assert JWT_SECRET not in fault


def test_a_jwt_secret_given_as_a_file_counts_and_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("correct horse battery staple\n")
    environ = LEAST | {"CRONIUM_RUNTIME_URL": RUNTIME_URL, "CRONIUM_JWT_SECRET_FILE": str(file)}
    runtime = load(environ).runtime
    assert runtime is not None
    assert runtime.jwt_secret.value == Secret("correct horse battery staple")

    file.write_text("another horse, another staple\n")
    assert runtime.jwt_secret.read() == Secret("another horse, another staple")

    file.write_text("cut")
    assert runtime.jwt_secret.read() == Secret("correct horse battery staple")


def test_a_half_that_is_at_fault_is_one_fault() -> None:
    (fault,) = faults(LEAST | RUNTIME | {"CRONIUM_RUNTIME_URL": "ftp://runtime"})

    assert fault.startswith("CRONIUM_RUNTIME_URL: 'ftp://runtime' is not an http(s) URL")


@pytest.mark.parametrize(
    "secret", ["hunter2", "x" * 15, "a line\nand another line", "x" * 40 + "\0"]
)
def test_a_jwt_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    (fault,) = faults(LEAST | RUNTIME | {"CRONIUM_JWT_SECRET": secret})

    assert fault.startswith("CRONIUM_JWT_SECRET: its value ")
    assert "32 characters" in fault
    assert secret not in fault


@pytest.mark.parametrize("secret", ["x" * 16, "with spaces, and ünïcode"])
def test_a_jwt_secret_may_be_any_line_of_16_characters(secret: str) -> None:
    runtime = load(LEAST | RUNTIME | {"CRONIUM_JWT_SECRET": secret}).runtime

    assert runtime is not None
    assert runtime.jwt_secret.value == Secret(secret)


def test_a_password_in_the_runtime_url_is_refused_and_not_shown() -> None:
    fault = faults(LEAST | RUNTIME | {"CRONIUM_RUNTIME_URL": "http://me:hunter2@runtime"})[0]

    assert "hunter2" not in fault
    assert "CRONIUM_JWT_SECRET" in fault
