"""Operators. The public functions are in :mod:`dcnv4_mm.ops.functional`."""
