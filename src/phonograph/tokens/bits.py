"""Packing codes of 1 to 16 bits without gaps, and back.

Code i of a row takes the bits [i * bits, (i + 1) * bits) of that row's bit string, its lowest bit first; bit
j of the string is bit j % 8 of byte j // 8, where bit 0 is the lowest. A row ends with zero bits up to a
whole byte. Nothing here knows what the codes mean.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack", "packed_bytes", "unpack"]

# Eight codes of b bits are exactly b bytes, and fit into two 64-bit words.
GROUP = 8
WORD_BITS = 64


def packed_bytes(num_codes: int, bits: int) -> int:
    """Bytes that `num_codes` codes of `bits` bits take."""
    return (num_codes * bits + 7) // 8


def pack(codes: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Codes (rows, n), each below 2**bits, to bytes (rows, ceil(n * bits / 8)), row by row."""
    rows, num_codes = codes.shape
    num_groups = -(-num_codes // GROUP)
    if num_codes % GROUP:
        codes = np.pad(codes, ((0, 0), (0, num_groups * GROUP - num_codes)))
    groups = codes.reshape(rows, num_groups, GROUP)
    words = np.zeros((rows, num_groups, 2), dtype="<u8")
    for position in range(GROUP):
        code = groups[:, :, position].astype(np.uint64)
        word, shift = divmod(position * bits, WORD_BITS)
        words[:, :, word] |= code << np.uint64(shift)
        if shift + bits > WORD_BITS:
            words[:, :, word + 1] |= code >> np.uint64(WORD_BITS - shift)
    packed = words.view(np.uint8)[:, :, :bits].reshape(rows, num_groups * bits)
    return packed[:, : packed_bytes(num_codes, bits)]


def unpack(packed: NDArray[np.uint8], num_codes: int, bits: int) -> NDArray[np.uint16]:
    """Bytes (rows, ceil(num_codes * bits / 8)) to codes (rows, num_codes); padding bits are ignored."""
    rows, row_bytes = packed.shape
    num_groups = -(-num_codes // GROUP)
    if row_bytes < num_groups * bits:
        packed = np.pad(packed, ((0, 0), (0, num_groups * bits - row_bytes)))
    octets = np.zeros((rows, num_groups, 16), dtype=np.uint8)
    octets[:, :, :bits] = packed.reshape(rows, num_groups, bits)
    words = octets.view("<u8")
    codes = np.empty((rows, num_groups, GROUP), dtype=np.uint16)
    mask = np.uint64((1 << bits) - 1)
    for position in range(GROUP):
        word, shift = divmod(position * bits, WORD_BITS)
        code = words[:, :, word] >> np.uint64(shift)
        if shift + bits > WORD_BITS:
            code |= words[:, :, word + 1] << np.uint64(WORD_BITS - shift)
        codes[:, :, position] = code & mask
    return codes.reshape(rows, -1)[:, :num_codes]
