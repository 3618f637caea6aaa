"""Optimizer construction and learning rates."""

from dcnv4_mm._missing import naming_extra

with naming_extra("dcnv4_mm.optim", "mim"):
    from dcnv4_mm.optim.layer_decay import LayerDecayOptimWrapperConstructor
    from dcnv4_mm.optim.poly_warmup import PolyWarmupLR

__all__ = ["LayerDecayOptimWrapperConstructor", "PolyWarmupLR"]
