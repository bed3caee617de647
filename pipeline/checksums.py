"""CRC-32C of many short rows, compiled: it takes no turns of the interpreter that the backbone is waiting for."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, bits reversed."""


def _tables() -> NDArray[np.uint32]:
    """Return what a byte adds to the checksum when 0 to 7 more bytes follow, shape (8, 256)."""
    tables = np.zeros((8, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = np.where(tables[0] & 1, tables[0] >> 1 ^ _POLYNOMIAL, tables[0] >> 1)
    for following in range(1, 8):
        before = tables[following - 1]
        tables[following] = tables[0][before & 0xFF] ^ before >> 8
    return tables


_TABLES = _tables()


def checksum_rows(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the CRC-32C of each row of bytes, as `store.layout.checksum_rows` does, without holding the interpreter.

    Parameters
    ----------
    rows : ndarray of uint8, shape (row, byte)
        In C order.

    Returns
    -------
    ndarray of uint32, shape (row,)
        The checksums.
    """
    rows = np.ascontiguousarray(rows)
    sums = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    whole = rows.shape[1] // 8 * 8
    words = rows[:, :whole] if whole < rows.shape[1] else rows
    _add_words(np.ascontiguousarray(words).view("<u8").astype(np.uint64, copy=False), _TABLES, sums)
    _add_bytes(rows[:, whole:], _TABLES, sums)
    return ~sums


@njit(nogil=True, cache=True)
def _add_words(words: NDArray[np.uint64], tables: NDArray[np.uint32], sums: NDArray[np.uint32]) -> None:
    """Take eight bytes at a time (Kounavis and Berry, 2005) of four rows by turns, so that none waits for a table."""
    whole = len(words) // 4 * 4
    for j in range(0, whole, 4):
        a, b, c, d = sums[j], sums[j + 1], sums[j + 2], sums[j + 3]
        for i in range(words.shape[1]):
            a = _step(words[j, i], a, tables)
            b = _step(words[j + 1, i], b, tables)
            c = _step(words[j + 2, i], c, tables)
            d = _step(words[j + 3, i], d, tables)
        sums[j], sums[j + 1], sums[j + 2], sums[j + 3] = a, b, c, d
    for j in range(whole, len(words)):
        for i in range(words.shape[1]):
            sums[j] = _step(words[j, i], sums[j], tables)


@njit(nogil=True, inline="always")
def _step(word: np.uint64, crc: np.uint32, tables: NDArray[np.uint32]) -> np.uint32:
    byte = np.uint64(0xFF)
    word ^= np.uint64(crc)
    return np.uint32(
        tables[7, word & byte]
        ^ tables[6, word >> np.uint64(8) & byte]
        ^ tables[5, word >> np.uint64(16) & byte]
        ^ tables[4, word >> np.uint64(24) & byte]
        ^ tables[3, word >> np.uint64(32) & byte]
        ^ tables[2, word >> np.uint64(40) & byte]
        ^ tables[1, word >> np.uint64(48) & byte]
        ^ tables[0, word >> np.uint64(56)]
    )


@njit(nogil=True, cache=True)
def _add_bytes(rows: NDArray[np.uint8], tables: NDArray[np.uint32], sums: NDArray[np.uint32]) -> None:
    for j in range(len(rows)):
        for i in range(rows.shape[1]):
            sums[j] = tables[0, (sums[j] ^ np.uint32(rows[j, i])) & np.uint32(0xFF)] ^ sums[j] >> np.uint32(8)
