"""What the worker costs and how fast it is, held against targets and against other programs.

Whatever can be is measured from outside: real worker and queue processes, real sshd, what the
worker's log, the queue's database and the kernel say. So what is measured stays the same when the
worker changes inside.

    rows        what a row is, and when it meets its target
    bench       what all experiments share: sizes, rounds, a folder
    fleet       many sshd on loopback, and how OpenSSH's own client reaches them
    delay       a line with a round trip time, as a process
    processes   what the kernel says of a process: time, memory, connections
    bed         a queue process, and worker processes on it
    bare        asyncssh under trio-asyncio and nothing else, as a process
    clients     other programs that do the same
    fanout      one job on many servers, done by us and by others
    round_trips, fan_outs, throughput, streams, memory, counts, commands, masking
                the experiments, each of which gives some rows
    experiments the list of them
    table       rows as text and as JSON
    curve       the fan-out curve as SVG
"""
