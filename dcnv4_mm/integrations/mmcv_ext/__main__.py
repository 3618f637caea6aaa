"""Runs a program, or a tool of a host, with the operators that mmcv-lite does not have.

python -m dcnv4_mm.integrations.mmcv_ext SCRIPT.py [ARGUMENT ...]
python -m dcnv4_mm.integrations.mmcv_ext mmdet confusion_matrix [ARGUMENT ...]
"""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from dcnv4_mm.integrations import install


def find_script(arguments: list[str]) -> Path:
    """Removes the program from the arguments and returns its path; exits if there is none."""
    script = Path(arguments.pop(0)) if arguments else Path()
    if script.suffix == ".py" and script.is_file():
        return script
    host = find_spec(script.name) if script.name.isidentifier() else None
    if host is not None and host.origin is not None and arguments:
        tools = Path(host.origin).parent / ".mim" / "tools"
        found = sorted(tools.rglob(f"{arguments[0].removesuffix('.py')}.py"))
        if found:
            del arguments[0]
            return found[0]
    raise SystemExit(f"error: expected a script, or a host and its tool, got {sys.argv[1:]}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    script = find_script(arguments)
    install()
    # As when Python runs the program itself.
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
