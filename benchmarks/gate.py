"""What must hold before anything is measured: fast and wrong is worth nothing."""

import torch
from cases import Case, make_inputs

from dcnv4_mm.ops.dcnv4.reference import dcnv4_backward_reference, dcnv4_forward_reference
from dcnv4_mm.ops.functional import dcnv4

CASE = Case(batch=3, height=9, width=11, groups=5, channels=16)
# Of results that are rounded once, the largest part; measured 4e-7, 2e-4 and 1.7e-3.
LIMITS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_errors(dtype: torch.dtype, device: torch.device) -> list[float]:
    """Of the output and both gradients, against the float64 reference on the CPU."""
    tensors = make_inputs(CASE, dtype)
    value, offset_mask, grad = (tensor.to(device) for tensor in tensors)
    leaves = [value.requires_grad_(), offset_mask.requires_grad_()]
    output = dcnv4(*leaves, groups=CASE.groups)
    results = [output, *torch.autograd.grad(output, leaves, grad)]
    exact, exact_offset_mask, exact_grad = (tensor.double() for tensor in tensors)
    settings = ([3, 3], [1, 1], [1, 1], [1, 1], CASE.groups, 1.0, False)
    inputs = (exact, exact_offset_mask, *settings)
    wanted = [dcnv4_forward_reference(*inputs), *dcnv4_backward_reference(exact_grad, *inputs)]
    return [
        ((result.cpu().double() - exact).norm() / exact.norm()).item()
        for result, exact in zip(results, wanted, strict=True)
    ]


def check_operator(device: torch.device) -> None:
    """Ends the program unless the operator computes on ``device`` what it should."""
    for dtype, limit in LIMITS.items():
        for name, error in zip(
            ("output", "gradient of value", "gradient of offset_mask"),
            relative_errors(dtype, device),
            strict=True,
        ):
            # Not a number is no pass either.
            if not error <= limit:
                raise SystemExit(
                    f"error: nothing is measured: dcnv4's {name} on {device} in {str(dtype)[6:]} "
                    f"is wrong by {error:.2g} of its size, expected at most {limit:g}"
                )
