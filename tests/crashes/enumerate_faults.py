"""Runs a scenario once per file operation and fault, each time in a process of its own.

Started under LD_PRELOAD with the library of ``faulty_files.c``.
"""

import ctypes
import errno
import gc
import io
import json
import os
import shutil
import signal
import sys
import traceback
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

COUNT, FAIL, KILL, LOST_REPLY, HIDE = range(5)
# Disk full, read-only, broken disk, no quota (or inode) left: one after the other.
CODES = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        fault: "none", "error", "killed", "lost reply" or "hidden".
        error: Message of the exception that ended it, or ``None``.
        operations: All file operations up to its end, if it was not killed.
    """

    fault: str
    error: str | None
    operations: list[str]


class Scenario:
    """A program that writes files, and what must be true afterwards.

    Attributes:
        reads: Whether reading fails too.
    """

    reads = False

    def prepare(self, folder):
        """Writes the files that exist before."""

    def act(self, folder):
        """Runs the program."""
        raise NotImplementedError

    def check(self, folder, outcome):
        """Raises an ``AssertionError`` if the files are not as they must be."""
        raise NotImplementedError


def run(scenario, folder, library, index=-1, mode=COUNT, code=0):
    """Runs a scenario in a process of its own, with a fault in operation ``index``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        error = None
        library.faulty_arm(str(folder).encode(), index, mode, code, scenario.reads)
        try:
            with redirect_stdout(io.StringIO()):
                scenario.act(folder)
        except SystemExit as end:
            error = str(end.code) if end.code else None
        except BaseException as raised:
            error = f"{raised}\n{traceback.format_exc()}"
        operations = library.faulty_disarm().decode().splitlines()
        with open(writing, "w") as pipe:
            json.dump([error, operations], pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        result = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return Outcome("killed", None, [])
    return Outcome("", *json.loads(result))


def enumerate_faults(scenario, folder, library):
    """Returns the number of operations, and a description of every violation."""
    wrong = []

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        scenario.prepare(folder)

    def judge(outcome, name):
        try:
            scenario.check(folder, outcome)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            wrong.append(f"{name}: {type(error).__name__} in {where.line}: {error}"[:1500])

    # Children would copy what the collector touches.
    gc.collect()
    gc.freeze()
    fresh()
    plain = run(scenario, folder, library)
    plain.fault = "none"
    judge(plain, "no fault")
    for index, operation in enumerate(plain.operations):
        code = CODES[index % len(CODES)]
        faults = [("error", FAIL, code), ("killed", KILL, 0)]
        if operation.startswith("rename "):
            faults += [("lost reply", LOST_REPLY, code) for code in (errno.ENOENT, errno.EIO)]
            faults.append(("hidden", HIDE, 0))
        for fault, mode, code in faults:
            fresh()
            outcome = run(scenario, folder, library, index, mode, code)
            assert (outcome.fault == "killed") == (mode == KILL), (operation, outcome)
            outcome.fault = fault
            name = f"{fault} {errno.errorcode.get(code, '')} at {index} {operation}"
            judge(outcome, name)
            if fault == "killed":
                # What is left must not be in the way of the next run.
                again = run(scenario, folder, library)
                again.fault = "none"
                judge(again, f"run again after {name}")
    return len(plain.operations), wrong


def main():
    import scenarios

    library = ctypes.CDLL(None)
    library.faulty_disarm.restype = ctypes.c_char_p
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        found = enumerate_faults(getattr(scenarios, name)(), folder / name, library)
        print(json.dumps([name, found]), flush=True)


if __name__ == "__main__":
    main()
