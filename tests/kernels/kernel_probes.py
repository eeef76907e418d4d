"""Kernels that show tests the parts of `interpolate_kernel`: Philox words, table arithmetic."""

import torch
import triton
import triton.language as tl

from sffkernels.gpu import layout
from sffkernels.gpu.distributions import box_muller
from sffkernels.gpu.interpolate_kernel import locate
from sffkernels.gpu.philox import philox, unsigned, words_of


@triton.jit
def _words(out, start, name0, name1, key0, key1, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    base, high = words_of((first + start) // 4)
    counter = base + tl.arange(0, BLOCK // 4).to(tl.uint32)
    name0, name1, key0, key1 = unsigned(name0), unsigned(name1), unsigned(key0), unsigned(key1)
    x0, x1, x2, x3 = philox(counter, high, name0, name1, key0, key1)
    words = tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (BLOCK,))
    tl.store(out + first + tl.arange(0, BLOCK), words.to(tl.int32, bitcast=True))


def words_at(element, name, key, num, device):
    """Words of elements element .. element + num - 1 as int32."""
    out = torch.empty(num, dtype=torch.int32, device=device)
    words = *name.signed_words(), *key.signed_words()
    _words[(num // 1024,)](out, element, *words, BLOCK=1024)
    return out


@triton.jit
def _locate(chunks, tensors, out, CHUNK: tl.constexpr):
    index, start, num, _ = locate(chunks, tensors, CHUNK)
    tl.store(out + 3 * tl.program_id(0), index)
    tl.store(out + 3 * tl.program_id(0) + 1, start)
    tl.store(out + 3 * tl.program_id(0) + 2, num.to(tl.int64))


def located(rows, sizes, chunk, device):
    """Lists (index, start, num) of the programs of `rows`."""
    tensors = torch.zeros(len(sizes), layout.TENSOR_COLUMNS, dtype=torch.int64)
    tensors[:, 2] = torch.tensor(sizes)
    out = torch.empty(len(rows), 3, dtype=torch.int64, device=device)
    _locate[(len(rows),)](rows.contiguous().to(device), tensors.to(device), out, CHUNK=chunk)
    return out.t().tolist()


@triton.jit
def _normals(k0, k1, out0, out1, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word0 = tl.load(k0 + offsets).to(tl.uint32) << 8
    word1 = tl.load(k1 + offsets).to(tl.uint32) << 8
    z0, z1 = box_muller(word0, word1)
    tl.store(out0 + offsets, z0)
    tl.store(out1 + offsets, z1)


def normals(k0, k1):
    """Two float32 tensors of standard normals from two int32 ones of 24-bit integers, [2^n]."""
    out = k0.new_empty(k0.shape, dtype=torch.float32), k1.new_empty(k1.shape, dtype=torch.float32)
    block = min(len(k0), 1 << 16 if k0.device.type == "cpu" else 1024)
    _normals[(len(k0) // block,)](k0, k1, *out, BLOCK=block, enable_fp_fusion=False)
    return out
