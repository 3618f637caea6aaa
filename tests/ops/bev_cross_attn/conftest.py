"""The CUDA kernels' bodies, compiled for the host once per session."""

import os
from pathlib import Path

import pytest
from bev_cross_attn_host import SOURCE, HostKernels
from dcnv4_host import compile_host


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    path = os.environ.get("DCNV4_MM_BEV_HOST_LIBRARY")
    folder = tmp_path_factory.mktemp("bev_host")
    return HostKernels(Path(path) if path else compile_host(folder, source=SOURCE))
