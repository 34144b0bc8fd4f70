"""Scripts of many shapes, and every byte that each prints."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from worker.dispatch.result import Outcome

LIMIT_SECONDS = 120


class Tape:
    """A bash script as it is written, with all that it will print."""

    def __init__(self) -> None:
        self.script = ""
        self.out = b""
        self.err = b""

    def do(self, command: str) -> None:
        """What prints nothing."""
        self.script += f"{command}\n"

    def say(self, text: str) -> None:
        self.do(f"printf %s {shlex.quote(text)}")
        self.out += text.encode()

    def warn(self, text: str) -> None:
        self.do(f"printf %s {shlex.quote(text)} >&2")
        self.err += text.encode()

    def count(self, text: str, numbers: range) -> None:
        """A line with `text` for each number, no two alike."""
        self.do(f"seq -f '{text} %07.0f' {numbers[0]} {numbers[-1]}")
        self.out += _counted(text, numbers)

    def count_warnings(self, text: str, numbers: range) -> None:
        self.do(f"seq -f '{text} %07.0f' {numbers[0]} {numbers[-1]} >&2")
        self.err += _counted(text, numbers)

    def count_bytes(self, data: bytes, numbers: range) -> None:
        """`data`, whatever is in it, after each number, on both streams."""
        octal = "".join(f"\\{byte:03o}" for byte in data)
        loop = f"for n in $(seq {numbers[0]} {numbers[-1]}); do printf \"$n\"'{octal}'"
        self.do(f"{loop}; done; {loop} >&2; done")
        printed = b"".join(b"%d%b" % (n, data) for n in numbers)
        self.out += printed
        self.err += printed

    def sleep(self, seconds: float) -> None:
        self.do(f"sleep {seconds:.1f}")


def _counted(text: str, numbers: range) -> bytes:
    return "".join(f"{text} {number:07d}\n" for number in numbers).encode()


@dataclass(frozen=True, slots=True)
class Shape:
    """`outcome` is what an execution of it comes to that nothing has prevented."""

    script: str
    out: bytes
    err: bytes
    exit_code: int
    outcome: Outcome
    limit_seconds: int


@dataclass(frozen=True, slots=True)
class Kind:
    """`write` returns the exit code; `share` is how often it comes, compared with the others."""

    write: Callable[[Tape, str, Random], int]
    share: int = 2
    most_servers: int = 4
    limit_seconds: int = LIMIT_SECONDS


def shape(kind: str, number: int, starts: Path) -> Shape:
    """The script of job `number`, which first of all leaves a line in `starts`."""
    tape = Tape()
    line = '"$CRONIUM_EXECUTION_ID $CRONIUM_JOB_ID $CRONIUM_SERVER_NAME"'
    tape.do(f"echo {line} >>{shlex.quote(str(starts))}")
    code = KINDS[kind].write(tape, f"job {number}", Random(number))  # noqa: S311  no secret
    outcomes = {0: Outcome.SUCCESS, 124: Outcome.TIMED_OUT}
    outcome = outcomes.get(code, Outcome.FAILED)
    return Shape(tape.script, tape.out, tape.err, code, outcome, KINDS[kind].limit_seconds)


def _short(tape: Tape, name: str, random: Random) -> int:
    tape.say(f"{name} says hello\n")
    if random.random() < 0.5:
        tape.warn(f"{name} warns\n")
    return 0


def _steps(tape: Tape, name: str, random: Random) -> int:
    """Lines and characters that are broken by a pause."""
    for step in range(random.randint(6, 14)):
        tape.say(f"{name} begins step {step} ")
        tape.count_bytes(b" \xe2\x82", range(step, step + 1))
        tape.sleep(random.uniform(0.1, 0.5))
        tape.do(r"printf '\254'; printf '\254' >&2")
        tape.out += b"\xac"
        tape.err += b"\xac"
        tape.say(" and ends it\n")
        tape.warn(f" {name} after step {step}\n")
    return 0


def _flood(tape: Tape, name: str, random: Random) -> int:
    """Bursts of lines, so that a fault finds it in the middle of one."""
    first = 1
    for _ in range(random.randint(2, 5)):
        numbers = range(first, first + random.randint(500, 2000))
        dots = "." * random.randint(0, 40)
        tape.count(f"{name} {dots}", numbers)
        tape.count_warnings(f"{name} warns {dots}", numbers)
        first = numbers.stop
        tape.sleep(random.uniform(0.1, 0.4))
    return 0


def _huge(tape: Tape, name: str, random: Random) -> int:
    """More than is reported, so that its middle is left out."""
    for burst in range(4):
        first = 1 + burst * 8000
        tape.count(f"{name} {'.' * 140}", range(first, first + 8000))
        tape.count_warnings(f"{name} warns", range(first, first + 8000))
        tape.sleep(0.3)
    code = random.choice([0, 3])
    tape.do(f"exit {code}")
    return code


def _binary(tape: Tape, name: str, random: Random) -> int:
    """Bytes of every kind, and no line's end at the end."""
    for burst in range(random.randint(2, 5)):
        data = random.randbytes(random.randint(50, 250)) + b"\0\n\xff\0"
        tape.count_bytes(data, range(burst * 200, burst * 200 + 200))
        tape.sleep(random.uniform(0.1, 0.5))
    tape.say(f"{name} ends without a line's end")
    return 0


def _line(tape: Tape, name: str, random: Random) -> int:
    """One line longer than any that the worker keeps whole."""
    for burst in range(3):
        tape.count_bytes(b"," * random.randint(5, 40), range(burst * 5000, burst * 5000 + 5000))
        tape.sleep(0.3)
    return 0


def _silent(tape: Tape, name: str, random: Random) -> int:
    tape.sleep(random.uniform(0.2, 5))
    return 0


def _failing(tape: Tape, name: str, random: Random) -> int:
    tape.say(f"{name} tries\n")
    tape.sleep(random.uniform(0, 2))
    tape.warn(f"{name} fails")
    code = random.choice([1, 2, 7, 100, 137])
    tape.do("kill -KILL $$" if code == 137 else f"exit {code}")
    return code


def _stubborn(tape: Tape, name: str, random: Random) -> int:
    """Over its limit, and deaf to TERM."""
    tape.do("trap '' TERM")
    tape.say(f"{name} will not go\n")
    tape.do("while :; do sleep 30; done")
    return 124


def _family(tape: Tape, name: str, random: Random) -> int:
    """Leaves a process of another session behind, which ends by itself."""
    tape.do(f"setsid sleep {random.uniform(1, 6):.1f} >/dev/null 2>&1 </dev/null &")
    tape.say(f"{name} has a child\n")
    tape.sleep(random.uniform(0, 2))
    return 0


# All that a job prints fits into its `complete`, 8 MiB with prefixes and escapes, but for what is
# left out of `huge`: what is reported of it can be told exactly.
KINDS = {
    "short": Kind(_short, share=3),
    "steps": Kind(_steps, share=4),
    "flood": Kind(_flood, share=4),
    # Among several servers' output a line that is not kept whole could be broken by another's.
    "huge": Kind(_huge, share=1, most_servers=1),
    "line": Kind(_line, share=1, most_servers=1),
    "binary": Kind(_binary, share=3),
    "silent": Kind(_silent),
    "failing": Kind(_failing),
    "stubborn": Kind(_stubborn, share=1, limit_seconds=3),
    "family": Kind(_family),
}
