"""The one ``torch.library`` namespace in which every operator of this package is defined."""

import torch

library = torch.library.Library("dcnv4_mm", "DEF")
# Implemented by the compiled CPU library alone: the instruction set that its kernels use.
library.define("cpu_isa() -> str")
