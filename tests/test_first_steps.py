"""What once stopped new users before their first result, and has no other test."""

import re
import runpy

import pytest
from helpers import ROOT

INSTRUCTIONS = [
    *(ROOT / name for name in ("README.md", "README_zh-CN.md", "Dockerfile", "Makefile")),
    *(ROOT / "pyproject.toml", *(ROOT / "requirements").glob("*.txt")),
    *(ROOT / "docs").glob("**/*.md"),
    *(ROOT / "configs").glob("*/README.md"),
]


def test_no_instruction_compiles_mmcv():
    """mmcv 2.1 does not compile with the torch that pip installs: C++20 headers."""
    lines = [(path.name, line) for path in INSTRUCTIONS for line in path.read_text().splitlines()]
    asked = [
        (name, line)
        for name, line in lines
        if re.search(r"\b(pip|mim) install\b", line) or re.match(r"[\w.-]+\s*[=<>~]=", line)
    ]
    assert len(asked) > 50
    assert not [(name, line) for name, line in asked if re.search(r"\bmmcv(?![-_\w])", line)]


def test_a_failed_compilation_shows_the_reason_of_the_compiler(tmp_path, capfd):
    """And no traceback of ours in its place."""
    source = tmp_path / "file.cpp"
    source.write_text("#error needs C++20\n")
    compilers = runpy.run_path(str(ROOT / "csrc" / "compilers.py"))
    command = [compilers["find_compiler"]()]
    with pytest.raises(SystemExit, match=r"file\.cpp.* failed .*C\+\+17 compiler.*NO_EXT=1"):
        compilers["compile_object"](command, str(source), tmp_path)
    assert "needs C++20" in capfd.readouterr().err


@pytest.mark.mmdet3d
def test_test_time_augmentation_of_bevformer_is_refused():
    """As docs/bev.md says; mmdet3d has no averaging for it."""
    from mmengine.config import Config

    path = "configs/bevformerv2/bevformerv2_r50_fpn_16xb1-24e-t1_nus-3d.py"
    use_tta = runpy.run_path(str(ROOT / "tools" / "test.py"))["use_tta"]
    with pytest.raises(SystemExit, match="tta_model"):
        use_tta(Config.fromfile(ROOT / path))


def test_bevformer_reads_neither_the_can_bus_nor_map_expansions():
    page = (ROOT / "docs" / "bev.md").read_text()
    assert "Neither the CAN bus expansion nor the map expansion is read" in page
    sources = [*(ROOT / "dcnv4_mm" / "bev").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    assert not re.search(r"can_?bus|expansion", text, re.IGNORECASE)
