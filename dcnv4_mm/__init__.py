"""DCNv4 operators and FlashInternImage models for the OpenMMLab 2.x libraries.

Importing this package imports nothing heavy. Start at :mod:`dcnv4_mm.ops.functional`,
:mod:`dcnv4_mm.layers` or :mod:`dcnv4_mm.backbones`, or run ``python -m dcnv4_mm.env``.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
