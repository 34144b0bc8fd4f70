"""One job: its plan, its fan-out over servers, its result; knows nothing of HTTP."""
