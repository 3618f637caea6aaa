"""One image through FlashInternImage as built and after ``fuse()``, in eager mode and compiled."""

import copy
import time
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from compare import Implementation, Settings, compare
from measure import Call, Table, relative_error
from models.export import make_classifier
from torch import Tensor


def run(table: Table, settings: Settings) -> None:
    """The forward; CPU time with one thread. On a GPU torch.compile captures CUDA graphs."""
    options = settings.options
    size, device = options.image or 224, settings.device
    mode = "reduce-overhead" if settings.on_gpu else "default"
    cases = product(options.sizes or ["t"], settings.dtypes, settings.threads)
    for arch, dtype, threads in cases:
        # Inductor writes the number of threads into its code.
        torch.set_num_threads(threads)
        plain = make_classifier(arch).to(device, getattr(torch, dtype))
        image = torch.randn(1, 3, size, size, device=device, dtype=getattr(torch, dtype))
        fused = copy.deepcopy(plain).fuse()
        models = {
            "eager": plain,
            "fused": fused,
            "torch.compile": torch.compile(plain, mode=mode),
            "fused, torch.compile": torch.compile(fused, mode=mode),
        }
        with torch.inference_mode():
            expected = plain(image).double()

            def build(call: Call, expected: Tensor = expected) -> Implementation:
                figures = dict(relative_error=relative_error(call(), expected))
                return Implementation(calls=[call], images=1, figures=figures)

            compare(
                table,
                replace(settings, threads=[threads]),
                case=f"{arch} 1x3x{size}x{size}",
                measured="forward",
                dtype=dtype,
                builders={name: partial(build, partial(m, image)) for name, m in models.items()},
                clock=time.perf_counter if settings.on_gpu or threads > 1 else time.process_time,
            )
