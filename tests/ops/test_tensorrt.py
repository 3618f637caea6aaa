"""The plugin of TensorRT: it compiles, and answers what an engine asks it without a GPU."""

import os
import subprocess

import pytest
from helpers import ROOT

SOURCE = ROOT / "tests/ops/tensorrt_run.cpp"
HEADERS = os.environ.get("DCNV4_MM_TENSORRT")
ANSWERS = """\
creators 1: DCNv4, version 1
field kernel_size: 2 of type 5
field stride: 2 of type 5
field padding: 2 of type 5
field dilation: 2 of type 5
field groups: 1 of type 5
field remove_center: 1 of type 5
field offset_scale: 1 of type 1
logged dcnv4: the plugin needs 1 32-bit numbers as remove_center
without remove_center (nil)
plugin DCNv4, outputs 1
saved kernel_size 3 3
saved stride 2 1
saved padding 1 1
saved dilation 1 1
saved groups 2
saved remove_center 1
saved offset_scale 0.5
output of 4 axes: 4 5 6 3
supports float 1 half 1 both 0 int 0 chw4 0
fits 0
logged dcnv4: offset_mask must have the output size 4 on axis 1, got the shape (2, 5, 6, 48)
does not 1
"""


@pytest.mark.skipif(not HEADERS, reason="built without TensorRT's headers")
def test_plugin_answers(tmp_path, setup_functions):
    setup_functions["build_tensorrt_library"](tmp_path / "plugin.so", tmp_path)
    program = tmp_path / "run"
    command = [setup_functions["find_nvcc"](), "-std=c++17", f"-I{HEADERS}", SOURCE, "-o", program]
    subprocess.run([*command, "-ldl"], check=True)
    answers = subprocess.run([program, tmp_path / "plugin.so"], text=True, capture_output=True)
    assert (answers.stdout, answers.returncode) == (ANSWERS, 0)
