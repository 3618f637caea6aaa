"""Optimizer construction and learning rates."""

from dcnv4_mm.optim.layer_decay import LayerDecayOptimWrapperConstructor
from dcnv4_mm.optim.poly_warmup import PolyWarmupLR

__all__ = ["LayerDecayOptimWrapperConstructor", "PolyWarmupLR"]
