"""Checks that the data of a config fit together, before anything is trained or scored."""

from dcnv4_mm.integrations.data_checks.faults import DataError
from dcnv4_mm.integrations.data_checks.hook import CheckDataHook

__all__ = ["CheckDataHook", "DataError"]
