"""Compile a Triton kernel for a GPU that is not there, and read its machine code.

    code = compile_kernel(kernel, {"x": "*fp32", "num": "i32"}, {"BLOCK": 1024}, arch=90)
    code.assert_no_stack()
    assert code.count("LDG", width=128) == 4

Needs neither device nor driver: ptxas, cuobjdump and nvdisasm come with triton. The process must
not run under TRITON_INTERPRET (then a kernel is an ordinary function): see `needs_compiler`.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from on_device import HAS_TRITON, INTERPRETED

ARCHITECTURES = (80, 90)  # A100; H100 and H200

needs_compiler = pytest.mark.skipif(
    INTERPRETED or not HAS_TRITON,
    reason="compiles kernels: needs triton, and TRITON_INTERPRET unset",
)

# An instruction of nvdisasm: /*0a10*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)(.*?);")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class MachineCode:
    """What ptxas made of one kernel."""

    num_registers: int
    stack_bytes: int
    shared_bytes: int  # dynamic, as the launch asks for it
    text: str  # nvdisasm's listing

    @cached_property
    def opcodes(self) -> tuple[str, ...]:
        """Every instruction with its modifiers, in order, without the padding at the end."""
        found = [match[1] for match in map(_INSTRUCTION.search, self.text.splitlines()) if match]
        return tuple(opcode for opcode in found if opcode != "NOP")

    @property
    def kinds(self) -> Counter[str]:
        """How often each opcode occurs, modifiers cut off."""
        return Counter(opcode.partition(".")[0] for opcode in self.opcodes)

    def count(self, kind: str, width: int | None = None) -> int:
        """Instructions of one kind, of one access width in bits if given."""
        mine = [opcode.split(".") for opcode in self.opcodes]
        return sum(one[0] == kind and (width is None or str(width) in one) for one in mine)

    def assert_no_stack(self) -> None:
        """No spill and no other stack use (libdevice's slow sin and cos have one)."""
        assert self.stack_bytes == 0, f"{self.stack_bytes} bytes of stack"
        assert not self.count("LDL"), f"{self.count('LDL')} loads from local memory"
        assert not self.count("STL"), f"{self.count('STL')} stores to local memory"

    def assert_wide(self, loads: str = "LDG", stores: str = "STG") -> None:
        """There are loads and stores of 128 bits."""
        assert self.count(loads, width=128), f"no {loads}.128 among {dict(self.kinds)}"
        assert self.count(stores, width=128), f"no {stores}.128 among {dict(self.kinds)}"


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any] | None = None,
    *,
    arch: int,
    aligned: Sequence[str] = (),
    **options: Any,
) -> MachineCode:
    """Machine code of `kernel` for sm_<arch>.

    signature: triton type of every argument that is no constant ("*bf16", "i32", "fp32").
    constants: value of every `tl.constexpr` argument (None for a pointer that is not passed).
    aligned: arguments divisible by 16, which a launch finds out by itself.
    options: num_warps, num_stages, enable_fp_fusion ...
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = dict(constants or {})
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    source = ASTSource(
        kernel,
        types,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return _read(compiled.asm["cubin"], compiled.metadata.shared)


def _read(cubin: bytes, shared_bytes: int) -> MachineCode:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _USAGE.search(_tool("cuobjdump", "--dump-resource-usage", path))
        text = _tool("nvdisasm", "-c", path)
    assert usage, "cuobjdump printed no resource usage"
    registers, stack, _, local = (int(number) for number in usage.groups())
    return MachineCode(registers, stack + local, shared_bytes, text)


def _tool(name: str, *arguments: object) -> str:
    import triton.backends.nvidia

    (folder,) = triton.backends.nvidia.__path__
    command = [str(Path(folder) / "bin" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
