"""How the properties of this folder are tried."""

import os

from hypothesis import HealthCheck, settings

# No deadline: a busy machine is not a fault. No database: it would lie in the work tree. The same
# examples for every change in CI: what chance finds is for those who can look into it.
settings.register_profile(
    "pure",
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pure")
