"""Where the tests of device/ run their kernels: on CUDA, or on a CPU in triton's interpreter.

    from on_device import DEVICE, needs_kernels
    pytestmark = needs_kernels

Tests of one file serve both. Without either they skip; `test_interpreter.py` runs them
in a process that has TRITON_INTERPRET=1 set before triton is imported.
"""

import importlib.util
import os

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = HAS_TRITON and torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

needs_kernels = pytest.mark.skipif(
    not (INTERPRETED or ON_GPU),
    reason="needs a CUDA device; test_interpreter.py runs this file without one",
)
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
