"""What tests of several operators' kernels measure, and memory that does not exist yet."""

import ctypes
import mmap
import re
from pathlib import Path

import torch


def untouched(*shape, dtype):
    """Zeros of which only the pages that are touched take memory."""
    noreserve = 0x4000
    elements = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve
    pages = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def results_by_threads(run):
    """The results of ``run`` with several numbers of threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results


def _memory_kilobytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))


# Linux counts a process's pages in batches of 64 (256 KB) for each thread and CPU.
_RESOLUTION = 1 << 20


def peak_of(function, *arguments):
    """Bytes that a call takes at least at its peak, and those of its results.

    The smallest of three measurements, as what else the process does adds to one, less the error of
    the system's count.
    """
    # Large blocks come from the system and go back to it: what is in use is what is held.
    mmap_threshold = -3
    ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)
    peaks = []
    for _ in range(3):
        outputs = None
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is in use now
        before = _memory_kilobytes("VmRSS")
        outputs = function(*arguments)
        peaks.append(1024 * (_memory_kilobytes("VmHWM") - before))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    written = sum(tensor.nbytes for tensor in outputs)
    used = min(peaks)
    assert used > 0.9 * written  # otherwise the measurement is wrong
    return used - _RESOLUTION, written
