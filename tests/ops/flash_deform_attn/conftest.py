"""The CUDA kernels' bodies, compiled for the host once per session."""

import os
from pathlib import Path

import pytest
from dcnv4_host import compile_host
from flash_deform_attn_host import SOURCE, HostKernels


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    path = os.environ.get("DCNV4_MM_ATTENTION_HOST_LIBRARY")
    folder = tmp_path_factory.mktemp("attention_host")
    return HostKernels(Path(path) if path else compile_host(folder, source=SOURCE))
