"""Who may import whom: arrows point down only (design, section 2)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import worker

ROOT = Path(worker.__file__).parent

# The rooms from the top down; a room imports only from rows below its own, or from itself.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("demo",),
    ("service", "queue_server", "trial"),
    ("checkup",),
    ("intake", "vitals", "stalls"),
    ("jobs",),
    ("beginnings",),
    ("crew", "direct"),
    ("reported", "ownership", "live"),
    ("relay", "printed", "flight", "masked", "ends"),
    ("delivery",),
    ("verdicts",),
    ("report", "amended"),
    ("telemetry",),
    ("dispatch",),
    ("remote", "api"),
    ("snapshot",),
    ("state",),
    ("shown",),
    ("logs",),
    ("file_limit", "log_forms", "log_writer", "settings"),
    ("database", "values"),
    ("sealing", "masking"),
    ("secret_index",),
    ("secret_forms",),
    (
        "clock",
        "errors",
        "file_lock",
        "last_words",
        "notice",
        "secret",
        "serial_thread",
        "signals",
        "standstill",
        "trigger",
    ),
    ("__init__",),
)
LEVELS = {room: level for level, row in enumerate(LAYERS) for room in row}
FOUNDATIONS = frozenset(
    ("clock", "database", "errors", "sealing", "secret", "settings", "values", "__init__")
)

# What each room may not have although it lies below.
FORBIDDEN = {
    # Of the API it knows the bodies.
    "dispatch": {
        "httpx",
        "jwt",
        "starlette",
        "hypercorn",
        "worker.api.client",
        "worker.api.runtime",
        "worker.api.tokens",
        "worker.api.transport",
        "worker.relay",
    },
    "remote": {"httpx", "worker.api", "worker.dispatch", "worker.jobs"},
    "api": {"asyncssh", "trio_asyncio", "worker.remote", "worker.dispatch", "worker.state"},
    "state": {"httpx", "asyncssh", "worker.api", "worker.remote", "worker.dispatch"},
    "intake": {"asyncssh", "httpx", "worker.remote", "worker.dispatch"},
    "delivery": {"asyncssh", "httpx", "worker.remote", "worker.dispatch"},
    "relay": {"asyncssh", "httpx", "worker.remote", "worker.dispatch"},
    "queue_server": {"asyncssh", "trio_asyncio", "httpx"},
}
# Only these open connections, and only these know the libraries for it.
HOMES = {
    "httpx": {"api", "cli", "demo"},
    "asyncssh": {"remote", "demo"},
    "jwt": {"api", "queue_server"},
    "trio_asyncio": {"remote", "demo"},
    "starlette": {"queue_server"},
    "hypercorn": {"queue_server"},
    "sqlite3": {"database", "state", "queue_server"},
    "click": {"cli"},
    "rich": {"cli", "demo"},
    "opentelemetry": {"telemetry"},
}

MODULES = {
    ".".join(("worker", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
    if "helpers" not in path.parts  # those run on servers
}


def imported(source: str) -> Iterator[str]:
    """Every module that `source` imports, those inside of functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            # `from worker.api import wire` imports a module, `… import Body` a name of one.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


@cache
def imports(module: str) -> frozenset[str]:
    return frozenset(imported(MODULES[module].read_text()))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def upward(module: str, found: frozenset[str]) -> list[str]:
    own = room_of(module)
    return [
        f"{module} imports {each}"
        for each in sorted(found)
        if each.split(".")[0] == "worker"
        and room_of(each) != own
        and LEVELS[room_of(each)] <= LEVELS[own]
    ]


def is_or_is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in MODULES} <= set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upwards(module: str) -> None:
    assert upward(module, imports(module)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("worker.state.outbox", "from worker.relay import Relay"),
        ("worker.remote.runner", "from worker.dispatch import plan"),
        ("worker.remote.runner", "from worker.api import wire"),
        ("worker.api.client", "import worker.remote.target"),
        ("worker.dispatch.fanout", "from worker.jobs import Jobs"),
        ("worker.report", "def late():\n    from worker.relay import Relay"),
        ("worker.errors", "from worker import settings"),
    ],
)
def test_an_upward_import_would_be_seen(module: str, line: str) -> None:
    assert upward(module, frozenset(imported(line)))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_know_what_is_not_its_business(room: str) -> None:
    found = [
        f"{module} imports {each}"
        for module in MODULES
        if room_of(module) == room
        for each in imports(module)
        if any(is_or_is_in(each, package) for package in FORBIDDEN[room])
    ]

    assert found == []


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_known_only_where_it_belongs(library: str) -> None:
    found = {
        room_of(module)
        for module in MODULES
        if any(is_or_is_in(each, library) for each in imports(module))
    }

    assert found <= HOMES[library]


def test_the_queue_imports_the_wire_and_foundations_only() -> None:
    found = {
        each
        for module in MODULES
        if room_of(module) == "queue_server"
        for each in imports(module)
        if is_or_is_in(each, "worker") and room_of(each) != "queue_server"
    }

    assert {each for each in found if each != "worker.api.wire"} <= {
        module for module in MODULES if room_of(module) in FOUNDATIONS
    }


def test_only_commands_and_the_demo_import_the_queue() -> None:
    found = {
        room_of(module)
        for module in MODULES
        if any(is_or_is_in(each, "worker.queue_server") for each in imports(module))
    }

    assert found <= {"queue_server", "cli", "demo"}


def test_only_commands_and_what_they_call_first_read_the_environments_variables() -> None:
    found = {
        room_of(module)
        for module in MODULES
        if imports(module) & {"worker.settings.environment", "worker.settings.variables"}
    }

    assert found <= {"settings", "cli", "checkup", "queue_server"}


def test_no_imports_go_in_a_circle() -> None:
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " > ".join((*path, module))
        if module not in finished:
            for each in imports(module) & MODULES.keys():
                visit(each, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_environment_is_read_in_commands_only() -> None:
    found = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }

    assert {room_of(module) for module in found} <= {"cli", "demo"}
