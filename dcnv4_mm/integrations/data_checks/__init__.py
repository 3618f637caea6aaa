"""Checks of a config's data before training and evaluation."""

from dcnv4_mm.integrations.data_checks.faults import DataError
from dcnv4_mm.integrations.data_checks.hook import CheckDataHook

__all__ = ["CheckDataHook", "DataError"]
