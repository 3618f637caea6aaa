"""The layers of BEVFormerV2's encoder and decoder."""
