"""Rows of one job on many servers."""

from itertools import pairwise
from statistics import median

from tests.bench.bench import Bench, Experiment
from tests.bench.fanout import BARE, OURS, Cost, Fanout, in_turn, open_fanout
from tests.bench.rows import Measured, Row, at_most, measured, ratios, unmeasured

SIZES = (10, 100, 500)
WARM_JOBS = 3

CPU_COLD = Row("cpu-cold", "x", "CPU of a job on cold servers, against bare asyncssh", at_most(1.5))
WALL_COLD = Row(
    "wall-cold", "x", "wall of a job on cold servers, against bare asyncssh", at_most(1.15)
)
WALL_XARGS = Row("wall-vs-xargs-ssh", "x", "the same, against xargs -P 50 ssh", at_most(1))
WALL_PEERS = Row(
    "wall-vs-peers", "x", "the same, against the fastest of the peers installed", at_most(1)
)
CPU_WARM = Row("cpu-warm", "ms", "CPU per execution on servers used just before", at_most(2))
GROWTH = Row(
    "growth",
    "x",
    "CPU per cold server: the largest step from 10 to 100 and to 500 servers",
    at_most(1.15),
)


def run(bench: Bench) -> list[Measured]:
    with open_fanout(bench, "fan-out", bench.servers) as fanout:
        results = []
        if bench.wants(CPU_COLD.name, WALL_COLD.name, WALL_XARGS.name, WALL_PEERS.name):
            results += _cold(bench, fanout)
        if bench.wants(CPU_WARM.name):
            results.append(_warm(bench, fanout))
    return results


def _cold(bench: Bench, fanout: Fanout) -> list[Measured]:
    size = fanout.size
    programs = dict(fanout.programs)
    if not bench.wants(WALL_PEERS.name):
        programs = {name: programs[name] for name in programs if name in (OURS, BARE, "xargs ssh")}
    if not bench.wants(WALL_XARGS.name):
        programs.pop("xargs ssh", None)
    costs = {
        name: kept for (name, _), kept in in_turn(programs, [size], bench.rounds, bench).items()
    }
    ours, bare = costs[OURS], costs[BARE]
    note = f"{_per_server(ours, size)} against {_per_server(bare, size)} ms, {size} servers"
    walls = {name: [cost.wall_seconds for cost in kept] for name, kept in costs.items()}
    told = ", ".join(f"{name} {median(wall):.2f} s" for name, wall in walls.items())
    results = [
        measured(
            CPU_COLD.name,
            ratios([cost.cpu_seconds for cost in ours], [cost.cpu_seconds for cost in bare]),
            note,
        ),
        measured(WALL_COLD.name, ratios(walls[OURS], walls[BARE]), told),
    ]
    xargs = walls.pop("xargs ssh", None)
    if xargs is None:
        results += unmeasured([WALL_XARGS.name], "there is no xargs or no ssh, or it failed")
    else:
        results.append(measured(WALL_XARGS.name, ratios(walls[OURS], xargs)))
    peers = {name: median(wall) for name, wall in walls.items() if name not in (OURS, BARE)}
    if not peers:
        results += unmeasured([WALL_PEERS.name], "no peers are installed: --with-peers")
    else:
        fastest = min(peers, key=lambda name: peers[name])
        results.append(
            measured(WALL_PEERS.name, ratios(walls[OURS], walls[fastest]), f"it is {fastest}")
        )
    return results


def _warm(bench: Bench, fanout: Fanout) -> Measured:
    size = fanout.size
    costs = fanout.warm(size, max(WARM_JOBS, bench.rounds))
    return measured(
        CPU_WARM.name,
        (1000 * cost.cpu_seconds / size for cost in costs),
        f"{size} servers, wall {median(cost.wall_seconds for cost in costs):.2f} s",
    )


def _per_server(costs: list[Cost], count: int) -> str:
    return f"{1000 * median(cost.cpu_seconds for cost in costs) / count:.2f}"


def run_growth(bench: Bench) -> list[Measured]:
    """The largest step, for what a job costs beside its servers hides growth in the first one."""
    sizes = SIZES if not bench.quick else tuple(size // 5 for size in SIZES)
    with open_fanout(bench, "growth", sizes[-1]) as fanout:
        costs = in_turn({OURS: fanout.ours}, sizes, bench.rounds, bench)
    per_server = [[cost.cpu_seconds / size for cost in costs[OURS, size]] for size in sizes]
    steps = [ratios(larger, smaller) for smaller, larger in pairwise(per_server)]
    told = [f"{_per_server(costs[OURS, size], size)} ms at {size}" for size in sizes]
    return [measured(GROWTH.name, max(steps, key=median), ", ".join(told))]


FAN_OUTS = Experiment("fan-out", (CPU_COLD, WALL_COLD, WALL_XARGS, WALL_PEERS, CPU_WARM), run)
GROWTHS = Experiment("growth", (GROWTH,), run_growth)
