"""Settings of the property tests: the same examples in every run, or many new ones for `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "fuzz",
    parent=settings.get_profile("steady"),
    derandomize=False,
    max_examples=int(os.environ.get("STAGEWRIGHT_FUZZ_EXAMPLES", "5000")),
)
settings.load_profile("fuzz" if "STAGEWRIGHT_FUZZ_EXAMPLES" in os.environ else "steady")
