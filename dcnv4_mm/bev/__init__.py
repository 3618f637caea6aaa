"""BEVFormerV2 for mmdet3d; ``dcnv4_mm.bev.geometry`` needs torch alone."""
