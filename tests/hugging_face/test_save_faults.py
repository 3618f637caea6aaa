"""A fault or a kill while hugging_face.py writes a folder leaves it complete, or not there."""

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("mmengine", reason="mmengine is not installed")

from crashes.run_scenarios import run_scenarios


def test_every_fault_at_every_file_operation(tmp_path):
    operations, wrong = run_scenarios(["HuggingFace"], tmp_path)["HuggingFace"]
    assert operations >= 10
    assert wrong == [], "\n".join(wrong)
