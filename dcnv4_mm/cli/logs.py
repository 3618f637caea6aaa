"""Reads the scalars that mmengine logs below a work folder."""

import json
from pathlib import Path

# Values by iteration.
Points = dict[int, float]
# Counters and times that mmengine writes beside losses and metrics.
COUNTERS = {"step", "iter", "epoch", "time", "data_time", "memory"}


def read_logs(folder: Path) -> dict[str, Points]:
    """Scalars logged below a work folder: values by iteration, by name.

    A resumed run has logged some iterations twice: the later value counts.
    """
    paths = sorted(folder.glob("*/vis_data/scalars.json"))
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    # With epochs, results are logged under their number instead of the iteration's.
    ends: dict[int, int] = {}
    for record in records:
        if "epoch" in record:
            ends[record["epoch"]] = max(record["step"], ends.get(record["epoch"], 0))
    found: dict[str, Points] = {}
    for record in records:
        training = "loss" in record
        step = record["step"] if training else ends.get(record["step"], record["step"])
        for key, value in record.items():
            if key not in COUNTERS and isinstance(value, (int, float)):
                found.setdefault(key, {})[step] = value
    return found
