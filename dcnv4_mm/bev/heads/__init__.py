"""The two heads of BEVFormerV2."""
