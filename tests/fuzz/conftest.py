"""Few examples by default, always the same; `make fuzz` takes many, of two seeds."""

from hypothesis import HealthCheck, settings

COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
# Three operators and two seeds make 5,040 calls. Wrong arguments are fewer: each is tried.
settings.register_profile("long", max_examples=840, **COMMON)
settings.register_profile("short", max_examples=40, derandomize=True, **COMMON)
settings.load_profile("short")
