"""Few examples by default, always the same; all of them, of any seed, by `make fuzz`."""

from hypothesis import HealthCheck, settings

COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
# Of each kind of call 1250, 5000 in all.
settings.register_profile("long", max_examples=1250, **COMMON)
settings.register_profile("short", max_examples=40, derandomize=True, **COMMON)
settings.load_profile("short")
