"""One job on many cold servers, done by us and by others in turn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bare import run_bare
from tests.bench.bed import Bed, open_bed
from tests.bench.bench import Bench, CannotMeasureError
from tests.bench.clients import Client, installed_peers, xargs_ssh
from tests.bench.fleet import Fleet, open_fleet

SCRIPT = "echo hi"
OURS, BARE = "cronium-worker", "bare asyncssh"


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for all servers together, of the client alone."""

    wall_seconds: float
    cpu_seconds: float


Program = Callable[[int], Cost]


class Fanout:
    """Ours is the whole job: from its submission until all is done that follows it, API, state and
    log included, and its wall ends when the queue has the result. Others end with the last answer.
    """

    def __init__(self, fleet: Fleet, bed: Bed, folder: Path, peers: Path) -> None:
        self._bed = bed
        self._folder = folder
        # One to warm up with: what a program loads when it first connects counts for none.
        self._warm_up, *self._servers = fleet.servers
        self._names = fleet.names(1)
        self._warm_name = fleet.servers[0].name
        self.size = len(self._servers)
        # By name, each to be given a number of servers.
        self.programs: dict[str, Program] = {OURS: self.ours, BARE: self._bare}
        clients = installed_peers(fleet, peers)
        with suppress(CannotMeasureError):
            clients.insert(0, xargs_ssh(fleet))
        for client in clients:
            self.programs[client.name] = self._program(client)

    def prepare(self) -> None:
        """Put the runner on all servers and know their keys."""
        worker = self._bed.start_worker()
        self._bed.run(SCRIPT, [self._warm_name, *self._names])
        worker.settle()
        worker.stop()

    def ours(self, count: int) -> Cost:
        """By a worker that knows the servers and has no connection to any."""
        worker = self._bed.start_worker()
        self._bed.run(SCRIPT, [self._warm_name])
        worker.settle()
        before = worker.cpu_seconds
        done = self._bed.run(SCRIPT, self._names[:count])
        worker.settle()
        cost = Cost(done.wall_seconds, worker.cpu_seconds - before)
        worker.stop()
        return cost

    def warm(self, count: int, jobs: int) -> list[Cost]:
        """`jobs` one after the other on the same servers, after one that does not count."""
        worker = self._bed.start_worker()
        costs = []
        for _ in range(1 + jobs):
            before = worker.cpu_seconds
            done = self._bed.run(SCRIPT, self._names[:count])
            worker.settle()
            costs.append(Cost(done.wall_seconds, worker.cpu_seconds - before))
        worker.stop()
        return costs[1:]

    def _bare(self, count: int) -> Cost:
        told = run_bare(self._servers[:count], self._warm_up)
        return Cost(told.wall_seconds, told.cpu_seconds)

    def _program(self, client: Client) -> Program:
        def run(count: int) -> Cost:
            spent = client.run(self._servers[:count], self._folder)
            return Cost(spent.wall_seconds, spent.cpu_seconds)

        return run


@contextmanager
def open_fanout(bench: Bench, name: str, size: int) -> Iterator[Fanout]:
    """For up to `size` servers, which all have the runner."""
    with ExitStack() as stack:
        room = bench.room(name)
        fleet = stack.enter_context(open_fleet(1 + size))
        bed = stack.enter_context(open_bed(room))
        bed.add(fleet.servers)
        fanout = Fanout(fleet, bed, room, bench.peers)
        fanout.prepare()
        yield fanout


def in_turn(
    programs: dict[str, Program], counts: Sequence[int], rounds: int, bench: Bench
) -> dict[tuple[str, int], list[Cost]]:
    """Each program on each count of servers, `rounds` times; every other round backwards.

    A program that fails has no costs.
    """
    turns = [(name, count) for count in counts for name in programs]
    costs: dict[tuple[str, int], list[Cost]] = {turn: [] for turn in turns}
    failed: set[str] = set()
    for number in range(rounds):
        for name, count in turns if number % 2 == 0 else reversed(turns):
            if name in failed:
                continue
            try:
                cost = programs[name](count)
            except CannotMeasureError as error:
                if name in (OURS, BARE):
                    raise
                failed.add(name)
                bench.say(f"{name}: {error}")
                continue
            costs[name, count].append(cost)
            bench.say(
                f"{name}, {count} servers: {cost.wall_seconds:.2f} s,"
                f" {1000 * cost.cpu_seconds / count:.2f} ms CPU per server"
            )
    return {turn: kept for turn, kept in costs.items() if turn[0] not in failed}
