"""The signals that end a program in the foreground."""

import signal


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and the end of a terminal unless that is to be outlived, as by nohup."""
    is_outlived = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if is_outlived else (signal.SIGHUP,)))
