"""Runs an operator's CUDA code on the host, compiled with sanitizers; see test_sanitizers.py."""

import importlib
import sys

import torch
from ops.backends import DEVICES, HOST_RUNS, SANITIZERS, Backend


def shifted(tensor):
    """The tensor, not aligned for wide loads."""
    return torch.cat([tensor, tensor], dim=-1)[..., 1 : 1 + tensor.shape[-1]].copy_(tensor)


def main(operator):
    torch.use_deterministic_algorithms(True, warn_only=True)
    problems = importlib.import_module(f"ops.{operator}.problems")
    backends = [Backend(name, operator, *SANITIZERS) for name in HOST_RUNS]
    runs = [backend.run for backend in backends]
    for seed in range(12):
        problems.check_against_reference(problems.random_case(seed), *runs)
        for backend in backends[:2]:
            backend.host_device = DEVICES[seed % len(DEVICES)]
    for batch in (0, 2):
        problem = problems.make_problem(batch=batch)
        tensors = {"value": shifted(problem.value), "grad_output": shifted(problem.grad_output)}
        for run in runs:
            run(problem._replace(**tensors))


if __name__ == "__main__":
    main(*sys.argv[1:])
