"""How the properties of this folder are tried."""

from hypothesis import HealthCheck, settings

# No deadline: a busy machine is not a fault. No database: it would lie in the work tree.
settings.register_profile(
    "pure",
    deadline=None,
    database=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pure")
