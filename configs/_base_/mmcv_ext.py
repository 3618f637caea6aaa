# Serves the operators that mmcv-lite lacks before a host imports mmcv.ops.
custom_imports = dict(imports=["dcnv4_mm.registry"], allow_failed_imports=False)
