"""Makes nf4.safetensors: NF4 weights as bitsandbytes quantises them, for tests/unit/test_nf4.c.

    python make_nf4.py OUT.safetensors [FOLDER with encoder.safetensors of bert-tiny-sst2]

The values come from bitsandbytes' plain torch operators, called past its CPU kernels (whose 8-bit
quantiser can miss the nearest code at a midpoint). For a short last block the plain operator divides
by the absmax where all other blocks and the CUDA kernel multiply by its reciprocal; the script stops
if that changes a code. It also stops if summing the absmax in another order changes an 8-bit code, so
the stored codes can be compared exactly. Made with torch 2.15.0, bitsandbytes 0.50.2,
safetensors 0.8.0.

Tensors of a case: w, codes, absmax (without double quantisation); absmax_codes, nested, offset (with);
dequant and dequant_plain, every stride-th value with and without. The cases of real weights leave out
w, absmax and dequant_plain and have codes_crc, the CRC-32 of the codes, instead of the codes.
"""
import os
import sys
import zlib

import bitsandbytes  # noqa: F401  (registers the operators)
import numpy as np
import torch
from bitsandbytes.functional import create_dynamic_map, get_4bit_type
from safetensors.torch import load_file, save_file
from torch._C import DispatchKey, DispatchKeySet

BLOCK, GROUP = 64, 256
PLAIN = DispatchKeySet(DispatchKey.CompositeExplicitAutograd)
CODE8 = create_dynamic_map()
REAL = [
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.1.intermediate.dense.weight",
    "bert.pooler.dense.weight",
]


def plain(op, *args):
    return getattr(torch.ops.bitsandbytes, op).default.redispatch(PLAIN, *args)


def quantize(w):
    """codes, absmax, absmax_codes, nested, offset of a flat fp32 tensor."""
    codes, absmax = plain("quantize_4bit", w, BLOCK, "nf4", torch.uint8)
    offset = absmax.mean()
    absmax_codes, nested = plain("quantize_blockwise", absmax - offset, CODE8, GROUP)
    exact = absmax.double().mean().float()
    again, _ = plain("quantize_blockwise", absmax - exact, CODE8, GROUP)
    assert torch.equal(absmax_codes, again), "an 8-bit code depends on the order of the mean"
    rest = w.numel() % BLOCK
    if rest:
        tail = w[-rest:] * (1 / absmax[-1])
        lut = get_4bit_type("nf4", device="cpu")
        expected = torch.bucketize(tail, (lut[:-1] + lut[1:]) / 2)
        nibbles = torch.stack([codes[:, 0] >> 4, codes[:, 0] & 15], 1).reshape(-1)
        assert torch.equal(nibbles[w.numel() - rest : w.numel()].long(), expected)
    return codes.reshape(-1), absmax, absmax_codes, nested, offset.reshape(1)


def dequantize(w, codes, absmax):
    return plain("dequantize_4bit", codes.reshape(-1, 1), absmax, BLOCK, "nf4", [w.numel()], w.dtype)


def case(w, stride):
    w = w.reshape(-1).float()
    codes, absmax, absmax_codes, nested, offset = quantize(w)
    restored = plain("dequantize_blockwise", absmax_codes, nested, CODE8, GROUP, torch.float32) + offset
    return {
        "codes": codes,
        "absmax": absmax,
        "absmax_codes": absmax_codes,
        "nested": nested,
        "offset": offset,
        "dequant": dequantize(w, codes, restored)[::stride].clone(),
        "dequant_plain": dequantize(w, codes, absmax)[::stride].clone(),
    }


def edge_blocks():
    """Ten blocks: ties at every midpoint, their neighbours, zeros, one big value, tiny absmax, ..."""
    lut = get_4bit_type("nf4", device="cpu")
    mid = ((lut[:-1] + lut[1:]) / 2).numpy()
    up, down = np.nextafter(mid, np.float32(2)), np.nextafter(mid, np.float32(-2))
    b = torch.zeros(10, BLOCK)
    for row, values in enumerate([mid, up, down]):
        b[row, :15] = torch.from_numpy(values)
        b[row, 15] = 1.0
    b[3, :15], b[3, 15] = b[0, :15], -1.0  # the largest magnitude is negative
    b[5, 40] = -3.5  # block 4 stays zero
    b[6] = torch.linspace(-1, 1, BLOCK) * 1e-30
    b[7] = torch.linspace(-1, 1, BLOCK) * 1e30
    b[8] = 0.25
    b[9] = torch.linspace(-1, 1, BLOCK) * 1e-40  # its absmax has no finite reciprocal
    return b


def absmax_ties():
    """Blocks whose absmax lies half way between two 8-bit codes: offset and nested absmax are 1.

    Only midpoints that do not depend on the processor (linspace with or without FMA) are used."""
    mid = ((CODE8[:-1] + CODE8[1:]) / 2)[:17].double()
    low = 1 + mid  # exact in float32, as 0.5 <= -mid <= 1
    high, odd = [], 0
    for v in (2 - low).tolist():  # the mean has to stay 1: round up and down in turns
        f = np.float32(v)
        if float(f) != v:
            f, odd = (np.floor if odd else np.ceil)(v * 2**23) / 2**23, 1 - odd
        high.append(float(f))
    absmax = torch.cat([torch.tensor([0.0, 2.0]), low.float(), torch.tensor(high)])
    assert torch.equal(low, absmax[2:19].double()) and absmax.double().mean().float() == 1
    while absmax.mean() != 1:  # an order in which torch's float32 sum finds it too
        absmax = absmax[torch.randperm(absmax.numel())]
    b = torch.zeros(absmax.numel(), BLOCK)
    b[:, 5] = absmax
    return b


def main():
    torch.manual_seed(7)
    # float16 keeps the file small; the quantiser sees the widened values.
    generated = {
        "odd": (torch.randn(7, 37) * 0.02, 1),
        "groups": ((torch.randn(17, 1024) * 0.05).half(), 16),
        "edge": (edge_blocks(), 1),
        "ties8": (absmax_ties(), 64),
    }
    out = {"code8": CODE8}
    for name, (w, stride) in generated.items():
        out[f"{name}.w"] = w
        out.update({f"{name}.{k}": v for k, v in case(w, stride).items()})
    if len(sys.argv) > 2:
        weights = load_file(os.path.join(sys.argv[2], "encoder.safetensors"))
        for name in REAL:
            got = case(weights[name], 61)
            crc = zlib.crc32(got.pop("codes").numpy().tobytes())
            got = {k: got[k] for k in ("absmax_codes", "nested", "offset", "dequant")}
            got["codes_crc"] = torch.tensor([crc], dtype=torch.int64)
            out.update({f"{name}.{k}": v for k, v in got.items()})
    save_file(out, sys.argv[1], metadata={"format": "pt"})


if __name__ == "__main__":
    main()
