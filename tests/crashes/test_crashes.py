"""A fault or a kill at every file operation leaves a complete file, or the one before, or none.

Errors are of a full, read-only or broken disk, or of a used-up quota; ``rename`` is also reported
as failed though done, and done without being visible, as network file systems do.
"""

from importlib.util import find_spec

import pytest

pytest.importorskip("mmengine", reason="mmengine is not installed")

from crashes.run_scenarios import run_scenarios

# Scenario -> its fewest file operations, and the module that it needs.
SCENARIOS = {
    "SaveCheckpoint": (20, "mmengine"),
    "Resume": (15, "mmengine"),
    "Convert": (5, "mmengine"),
    "Publish": (5, "mmengine"),
    "ConvertBoxes": (5, "mmengine"),
    "Download": (8, "mmengine"),
    "MergeInfos": (5, "mmengine"),
    "Export": (10, "mmengine"),
    "ExportOnnx": (8, "onnxscript"),
    "Dataset": (15, "cv2"),
    # Last: a process that has imported more is forked more slowly.
    "AddInfos": (5, "mmdet3d"),
}
INSTALLED = {name: find_spec(module) is not None for name, (_, module) in SCENARIOS.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Scenario -> the number of its file operations, and what was wrong."""
    names = [name for name, installed in INSTALLED.items() if installed]
    return run_scenarios(names, tmp_path_factory.mktemp("crashes"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_fault_at_every_file_operation(name, results):
    fewest, module = SCENARIOS[name]
    if not INSTALLED[name]:
        pytest.skip(f"{module} is not installed")
    operations, wrong = results[name]
    assert operations >= fewest
    assert wrong == []
