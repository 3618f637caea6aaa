"""The modules of benchmarks, which stand on sys.path when they run."""

import sys

from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare  # noqa: F401
import measure  # noqa: F401
import report  # noqa: F401

# Its `ops` must not stand for the folder of tests.
sys.path.remove(str(ROOT / "benchmarks"))
