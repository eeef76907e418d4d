"""Runs tests/kernels/device in triton's interpreter, a process for each file.

TRITON_INTERPRET=1 must be set before triton is first imported, hence the processes. On a GPU
the same files run directly, and compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_device import HAS_TRITON

ROOT = Path(__file__).parents[2]
FILES = sorted(Path(__file__).with_name("device").glob("test_*.py"))


@pytest.mark.timeout(900)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernels_pass_their_tests_in_the_interpreter(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
