"""The block formats of GGUF, packed from chosen scales and codes by their definition.

Each function returns the bytes of `count` random blocks and the floats that they stand for: an oracle for
dequantization that shares no code with the gguf library.
"""

from collections.abc import Callable

import numpy as np

Packed = tuple[np.ndarray, np.ndarray]  # bytes [count, block_bytes], floats [count, block_size]


def half(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(0.001, 0.1, (count, 1)).astype(np.float16)


def as_bytes(*parts: np.ndarray) -> np.ndarray:
    rows = [np.ascontiguousarray(part).view(np.uint8).reshape(part.shape[0], -1) for part in parts]
    return np.concatenate(rows, axis=1)


def halves_as_nibbles(codes: np.ndarray) -> np.ndarray:
    """The first half of the codes in the low nibbles, the second in the high ones."""
    low, high = np.split(codes, 2, axis=1)
    return (low | high << 4).astype(np.uint8)


def q8_0(rng: np.random.Generator, count: int) -> Packed:
    d, codes = half(rng, count), rng.integers(-127, 128, (count, 32)).astype(np.int8)
    return as_bytes(d, codes), d.astype(np.float32) * codes


def q4_0(rng: np.random.Generator, count: int) -> Packed:
    d, codes = half(rng, count), rng.integers(0, 16, (count, 32)).astype(np.uint8)
    return as_bytes(d, halves_as_nibbles(codes)), d.astype(np.float32) * (codes.astype(np.float32) - 8)


def q4_1(rng: np.random.Generator, count: int) -> Packed:
    d, m, codes = half(rng, count), -half(rng, count), rng.integers(0, 16, (count, 32)).astype(np.uint8)
    return as_bytes(d, m, halves_as_nibbles(codes)), d.astype(np.float32) * codes + m.astype(np.float32)


def six_bit_pairs(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Eight scales and eight mins of six bits in twelve bytes; the last four lend their top bits away."""
    packed = np.zeros((scales.shape[0], 12), np.uint8)
    packed[:, :4] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    packed[:, 4:8] = mins[:, :4] | (mins[:, 4:] >> 4) << 6
    packed[:, 8:] = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    return packed


def q4_k_or_q5_k(bits: int) -> Callable[[np.random.Generator, int], Packed]:
    def pack(rng: np.random.Generator, count: int) -> Packed:
        d, dmin = half(rng, count), half(rng, count)
        scales, mins = (rng.integers(0, 64, (count, 8)).astype(np.uint8) for _ in range(2))
        codes = rng.integers(0, 2**bits, (count, 8, 32)).astype(np.uint8)
        floats = (d.astype(np.float32) * scales)[..., None] * codes
        floats -= (dmin.astype(np.float32) * mins)[..., None]
        low = codes & 15
        nibbles = (low[:, 0::2] | low[:, 1::2] << 4).reshape(
            count, -1
        )  # groups in pairs: 0 and 1, 2 and 3, ...
        parts = [d, dmin, six_bit_pairs(scales, mins)]
        if bits == 5:
            fifth = np.zeros((count, 32), np.uint8)
            for group in range(8):
                fifth |= (codes[:, group] >> 4) << group
            parts.append(fifth)
        return as_bytes(*parts, nibbles), floats.reshape(count, 256)

    return pack


def q6_k(rng: np.random.Generator, count: int) -> Packed:
    d = half(rng, count)
    scales = rng.integers(-128, 128, (count, 16)).astype(np.int8)
    codes = rng.integers(0, 64, (count, 256)).astype(np.uint8)
    floats = np.repeat(d.astype(np.float32) * scales, 16, axis=1) * (codes.astype(np.float32) - 32)
    quarters = codes.reshape(count, 2, 4, 32)  # two halves of four rows of 32
    low, high = quarters & 15, quarters >> 4
    ql = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return as_bytes(ql.reshape(count, -1), qh.reshape(count, -1), scales, d), floats


BLOCKS: dict[str, tuple[int, Callable[[np.random.Generator, int], Packed]]] = {
    "Q8_0": (32, q8_0),
    "Q4_0": (32, q4_0),
    "Q4_1": (32, q4_1),
    "Q4_K": (256, q4_k_or_q5_k(4)),
    "Q5_K": (256, q4_k_or_q5_k(5)),
    "Q6_K": (256, q6_k),
}
