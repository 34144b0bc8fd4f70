"""How fast the masker is: MB of output per second of processor time."""

import base64
import random
import time
from collections.abc import Callable

from tests.bench.bench import Bench, Experiment
from tests.bench.rows import Measured, Row, measured
from worker.masking import Masker, MaskingStream
from worker.secret import Secret

MEGABYTE = 1_000_000
TEXT_BYTES = 4 * MEGABYTE
CHUNK_BYTES = 64 * 1024
SECRETS = (0, 1, 10, 100)
# How many of the lines hold a secret in the row that plants some.
PLANTED_SHARE = 0.1
# fmt: off
WORDS = (
    "connection", "from", "accepted", "user", "service", "job", "finished", "error", "warning",
    "starting", "container", "image", "request", "GET", "POST", "/api/v1/items", "status", "200",
    "latency", "worker", "host", "https://example.org/path", "retry", "systemd[1]:", "Session",
)
# fmt: on


def log_line(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.1:
        return base64.b64encode(chance.randbytes(57)).decode()
    if kind < 0.2:
        return chance.randbytes(20).hex()
    words = " ".join(chance.choices(WORDS, k=chance.randrange(3, 14)))
    if kind < 0.3:
        return f'{{"level":"info","msg":"{words}","n":{chance.randrange(10**6)}}}'
    return f"2024-05-{chance.randrange(10, 29)}T12:00:00.{chance.randrange(1000):03d}Z {words}"


def log_text(chance: random.Random, planted: list[str], *, share: float) -> bytes:
    """`share` of the lines hold one of the secrets."""
    lines, size = [], 0
    while size < TEXT_BYTES:
        line = log_line(chance)
        if planted and chance.random() < share:
            line += " " + chance.choice(planted)
        lines.append(line)
        size += len(line) + 1
    return "\n".join(lines).encode()


def key(chance: random.Random) -> str:
    body = base64.b64encode(chance.randbytes(1400)).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join(("-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----", ""))


def secrets(chance: random.Random, count: int) -> list[str]:
    """One in ten is a key of 32 lines, one in ten a URL, two in ten hold signs to be escaped."""
    made = []
    for number in range(count):
        token = base64.b64encode(chance.randbytes(24)).decode()
        if number % 10 == 0:
            made.append(key(chance))
        elif number % 10 == 1:
            made.append(f"https://app:{token}@example.org/app.git?ref=main")
        elif number % 10 < 4:
            made.append(f"pa ss'{token[:14]}\"$wörd")
        else:
            made.append(token)
    return made


def megabytes_per_second(masker: Masker, text: bytes) -> float:
    def run() -> None:
        stream = MaskingStream(masker)
        for at in range(0, len(text), CHUNK_BYTES):
            stream.feed(text[at : at + CHUNK_BYTES])
        stream.flush()

    return len(text) / MEGABYTE / seconds(run)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def clean_row(count: int) -> Row:
    return Row(f"masking-{count}-secrets", "MB/s", f"masker with {count} secrets", digits=0)


PLANTED = Row(
    "masking-planted", "MB/s", "masker with 100 secrets, one in each tenth line", digits=0
)
COMPILE = Row("masking-compile", "ms", "CPU to make a masker of 100 secrets", digits=1)


def run(bench: Bench) -> list[Measured]:
    chance = random.Random(7)  # noqa: S311  the same text each time
    rounds = bench.pick(bench.rounds + 2, 1)
    texts = {count: secrets(chance, count) for count in SECRETS}
    known = {count: [Secret(text) for text in texts[count]] for count in SECRETS}
    most = max(SECRETS)
    results = []
    for count in SECRETS:
        text = log_text(chance, texts[count], share=0)
        speeds = [megabytes_per_second(Masker(known[count]), text) for _ in range(rounds)]
        results.append(measured(clean_row(count).name, speeds))
    planted = log_text(chance, texts[most], share=PLANTED_SHARE)
    speeds = [megabytes_per_second(Masker(known[most]), planted) for _ in range(rounds)]
    results.append(measured(PLANTED.name, speeds))
    costs = [1000 * seconds(lambda: Masker(known[most])) for _ in range(rounds)]
    results.append(measured(COMPILE.name, costs))
    return results


MASKING = Experiment("masking", (*(clean_row(count) for count in SECRETS), PLANTED, COMPILE), run)
