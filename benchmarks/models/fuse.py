"""One image through FlashInternImage as built and after ``fuse()``, in eager mode and compiled."""

import copy
import time
from functools import partial
from itertools import product

import torch
from compare import Settings
from measure import Table
from models.export import compare_forwards, make_classifier


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
            compare_forwards(
                table,
                settings,
                {name: partial(model, image) for name, model in models.items()},
                arch=arch,
                size=size,
                threads=threads,
                dtype=dtype,
                clock=time.perf_counter if settings.on_gpu or threads > 1 else time.process_time,
            )
