"""How fast the masker is: `python -m tests.bench_masking`; MB/s of processor time."""

import base64
import random
import time
from collections.abc import Callable

from worker.masking import Masker, MaskingStream, forms
from worker.secret import Secret

MEGABYTE = 1_000_000
TEXT_BYTES = 4 * MEGABYTE
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


def megabytes_per_second(masker: Masker, text: bytes, chunk_bytes: int) -> float:
    def run() -> None:
        stream = MaskingStream(masker)
        for at in range(0, len(text), chunk_bytes):
            stream.feed(text[at : at + chunk_bytes])
        stream.flush()

    return len(text) / MEGABYTE / min(seconds(run) for _ in range(5))


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    chance = random.Random(7)  # noqa: S311  the same text each time
    print("secrets  forms  compile ms   4 KiB  64 KiB   64 KiB, a secret in each 10th line  (MB/s)")  # noqa: T201
    for count in (0, 1, 10, 100):
        texts = secrets(chance, count)
        known = [Secret(text) for text in texts]
        compile_ms = 1000 * min(seconds(lambda known=known: Masker(known)) for _ in range(3))  # type: ignore[misc]
        masker = Masker(known)
        clean, planted = (log_text(chance, texts, share=share) for share in (0, 0.1))
        speeds = [
            megabytes_per_second(masker, clean, 4096),
            megabytes_per_second(masker, clean, 65536),
            megabytes_per_second(masker, planted, 65536),
        ]
        all_forms = len({form for text in texts for form in forms(text)})
        print(  # noqa: T201
            f"{count:7d} {all_forms:6d} {compile_ms:11.1f}"
            f" {speeds[0]:7.0f} {speeds[1]:7.0f} {speeds[2]:8.0f}"
        )


if __name__ == "__main__":
    main()
