"""Kernels that show tests the parts of `interpolate_kernel`: Philox words, table arithmetic."""

import torch
import triton
import triton.language as tl

from sffkernels.gpu import layout
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
