"""NF4 with double quantisation, in plain float32 NumPy arithmetic.

Owns the stored form of a 4-bit weight: blocks of 64 consecutive elements of the row-major matrix,
one 4-bit code an element, one 8-bit scale a block, one float32 scale for 256 of those, one float32
offset. It follows bitsandbytes' CUDA kernels (multiply by the reciprocal of the block maximum, ties
go down); make_models.py holds it against bitsandbytes itself and refuses values near enough to a
rounding border for two correct implementations to differ.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 64
NESTED_BLOCK = 256

# The quantiles of N(0, 1) that QLoRA chose, as float32 bit patterns.
NF4_CODEBOOK = np.array(
    [
        0xBF800000,
        0xBF3239B1,
        0xBF066B30,
        0xBECA32A0,
        0xBE91A24D,
        0xBE3D353F,
        0xBDBA7871,
        0x00000000,
        0x3DA2FAFF,
        0x3E24CAE3,
        0x3E7C04DD,
        0x3EAD033A,
        0x3EE1A4B8,
        0x3F1007AB,
        0x3F3913B3,
        0x3F800000,
    ],
    dtype=np.uint32,
).view(np.float32)


def decade_edges(steps: int) -> np.ndarray:
    """torch.linspace(0.1, 1, steps + 1) to the bit: from both ends inwards, rounded once."""
    first, last = np.float32(0.1), np.float32(1.0)
    step = np.float64((last - first) / np.float32(steps))
    i = np.arange(steps + 1)
    return np.where(
        2 * i < steps, np.float64(first) + step * i, np.float64(last) - step * (steps - i)
    ).astype(np.float32)


def dynamic_codebook() -> np.ndarray:
    """The signed 8-bit map: seven decades, the i-th in 2^i equal steps, and 0 and 1. [256]"""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = decade_edges(2**decade)
        means = np.float32(10.0 ** (decade - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [*means, *-means]
    return np.sort(np.array(values, dtype=np.float32))


@dataclass
class Nf4:
    """One quantised tensor; the margins say how near a scaled weight, and a scaled block maximum,
    came to a border between two codes."""

    codes: np.ndarray  # uint8 [n], one code an element, not packed
    absmax: np.ndarray  # uint8 [ceil(n / 64)]
    nested_absmax: np.ndarray  # float32 [ceil(ceil(n / 64) / 256)]
    nested_offset: np.float32
    shape: tuple
    margin: float
    nested_margin: float

    def dequantised(self) -> np.ndarray:
        """float32 tensor of the original shape."""
        nested = np.repeat(self.nested_absmax, NESTED_BLOCK)[: self.absmax.size]
        absmax = dynamic_codebook()[self.absmax] * nested + self.nested_offset
        scale = np.repeat(absmax, BLOCK)[: self.codes.size]
        return (NF4_CODEBOOK[self.codes] * scale).reshape(self.shape)

    def packed(self) -> np.ndarray:
        """uint8 [ceil(n / 2)], even elements in high nibbles; a spare nibble has zero's code."""
        even = np.append(self.codes, [7] * (self.codes.size % 2)).astype(np.uint8)
        return even[0::2] << 4 | even[1::2]


def block_quantise(
    values: np.ndarray, codebook: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Nearest codes of values / max|block|, the maxima, and the margin."""
    absmax = np.array(
        [np.abs(values[i : i + block]).max() for i in range(0, values.size, block)], np.float32
    )
    inverse = np.float32(1) / np.maximum(absmax, np.float32(1e-38))
    scaled = values * np.repeat(inverse, block)[: values.size]
    borders = (codebook[:-1] + codebook[1:]) / np.float32(2)
    codes = np.searchsorted(borders, scaled, side="left").astype(
        np.uint8
    )  # value == border goes down
    margin = min(float(np.abs(scaled - border).min()) for border in borders)
    return codes, absmax, margin


def quantise(weight: np.ndarray) -> Nf4:
    """NF4 of a float32 tensor, blocks running over the flattened rows."""
    codes, absmax, margin = block_quantise(weight.reshape(-1), NF4_CODEBOOK, BLOCK)
    offset = np.float32(absmax.astype(np.float64).mean())
    nested, nested_absmax, nested_margin = block_quantise(
        absmax - offset, dynamic_codebook(), NESTED_BLOCK
    )
    return Nf4(codes, nested, nested_absmax, offset, weight.shape, margin, nested_margin)
