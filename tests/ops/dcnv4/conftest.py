"""The CUDA kernels' bodies, compiled for the host once per session."""

import os
from pathlib import Path

import pytest
from dcnv4_host import HostKernels, compile_host


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    path = os.environ.get("DCNV4_MM_HOST_LIBRARY")
    return HostKernels(Path(path) if path else compile_host(tmp_path_factory.mktemp("host")))
