"""Optimizer construction."""

from dcnv4_mm.optim.layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ["LayerDecayOptimWrapperConstructor"]
