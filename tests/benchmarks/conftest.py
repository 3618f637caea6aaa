"""Puts the modules of benchmarks on sys.path, as when they run."""

import sys

from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare  # noqa: F401
import measure  # noqa: F401
import report  # noqa: F401

# Its modules must not hide the folders of tests.
sys.path.remove(str(ROOT / "benchmarks"))
