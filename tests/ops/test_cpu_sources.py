import re

from helpers import ROOT
from ops.backends import INSTRUCTION_SETS


def test_instruction_set_files_include_no_library_code():
    # An inline function of a C++ library header would exist once per instruction set, and the
    # linker would keep any one of them for all.
    harmless = {"stdint.h", "cstdint", "cstddef", "immintrin.h"}
    found, pending = set(), list((ROOT / "csrc").glob("*/cpu*.cpp"))
    assert len(pending) == len(INSTRUCTION_SETS) * len({path.parent for path in pending})
    while pending:
        text = pending.pop().read_text()
        assert set(re.findall(r"#include <(.*)>", text)) <= harmless
        own = {ROOT / "csrc" / name for name in re.findall(r'#include "(.*)"', text)} - found
        found |= own
        pending.extend(own)
    assert len(found) > 4
