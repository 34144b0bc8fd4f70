"""The list of experiments, in the order in which they are done."""

from tests.bench.bench import Experiment
from tests.bench.commands import COMMANDS
from tests.bench.counts import COUNTS
from tests.bench.fan_outs import FAN_OUTS, GROWTHS
from tests.bench.masking import MASKING
from tests.bench.memory import MEMORY, POOLED
from tests.bench.round_trips import ROUND_TRIPS
from tests.bench.stall import STALLS
from tests.bench.streams import MANY_STREAMS, STREAMS
from tests.bench.throughput import THROUGHPUT

EXPERIMENTS: tuple[Experiment, ...] = (
    COMMANDS,
    COUNTS,
    THROUGHPUT,
    ROUND_TRIPS,
    STALLS,
    FAN_OUTS,
    GROWTHS,
    STREAMS,
    MANY_STREAMS,
    MEMORY,
    POOLED,
    MASKING,
)
