"""Runs a program with the operators that mmcv-lite lacks.

python -m dcnv4_mm.integrations.mmcv_ext SCRIPT.py [ARGUMENT ...]
"""

import runpy
import sys
from pathlib import Path

from dcnv4_mm.integrations import install

if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
    sys.exit(__doc__.splitlines()[2].strip())
install()
del sys.argv[0]
# As Python does it.
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
runpy.run_path(sys.argv[0], run_name="__main__")
