"""A table that is written as it grows: a run that was cut short goes on where it stopped."""

import csv
import datetime
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import device_name

KEYS = ("stage", "case", "measured", "dtype", "contender")
COMMON = ("device", "driver", "torch", "cuda", "commit", "date")


class Table:
    """The rows of one stage; those that are in its file already need not be measured again.

    Args:
        name: What the file is called, after the device.
        stage: Of its rows.
        figures: The columns between what a row is of and where it was measured.
        folder: Where the file is, or will be.
        device: What is measured.
        commit: Of the kernels.
    """

    def __init__(
        self,
        name: str,
        *,
        stage: str,
        figures: Sequence[str],
        folder: Path,
        device: torch.device,
        commit: str,
    ):
        self.common = {"device": device_name(), "driver": "", "torch": torch.__version__}
        if device.type == "cuda":
            self.common["device"] = torch.cuda.get_device_name(device)
            self.common["driver"] = _driver()
        self.common |= {"cuda": torch.version.cuda or "", "commit": commit}
        self.stage = stage
        self.fields = (*KEYS, *figures, *COMMON)
        device_part = re.sub(r"[^a-z0-9]+", "-", self.common["device"].lower()).strip("-")
        self.path = folder / f"{device_part}_{name}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        # Figures of other code or another machine do not belong into one table.
        self.rows = [r for r in read(self.path) if all(r[k] == v for k, v in self.common.items())]
        self.done = {tuple(row[k] for k in KEYS) for row in self.rows}
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        print(", ".join(f"{k} {v}" for k, v in self.common.items() if v), flush=True)

    def has(self, case: str, measured: str, dtype: str, contender: str) -> bool:
        return (self.stage, case, measured, dtype, contender) in self.done

    def add(self, **values: object) -> dict[str, str]:
        """Writes a row; gives it back as it reads in the file."""
        row = {key: _text(values.get(key, "")) for key in self.fields} | self.common
        row |= {"stage": self.stage, "date": datetime.date.today().isoformat()}
        self.rows.append(row)
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.fields, lineterminator="\n").writerow(row)
        return row


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file, or none if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
