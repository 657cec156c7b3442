"""From a key's 128-bit hash to its slot: MurmurHash3 and open addressing.

A table is i4[2^m], an entry is slot + 1 and 0 is empty, so a table of zeros is an empty one. `hash0`
and `hash1` are u8 arrays by slot. The first 64 bits of the hash place an entry, both halves are
compared, so two keys meet only if all 128 bits agree. Keep a table at most half full: probing ends at
an empty entry, and there must be one.
"""

import numpy as np
from numba import njit

from streamai.kernels import leaf
from streamai.kernels.word import load8

C1 = np.uint64(0x87C37B91114253D5)
C2 = np.uint64(0x4CF5AD432745937F)
M1 = np.uint64(0xFF51AFD7ED558CCD)
M2 = np.uint64(0xC4CEB9FE1A85EC53)
ADD1 = np.uint64(0x52DCE729)
ADD2 = np.uint64(0x38495AB5)
FIVE = np.uint64(5)
U27, U31, U33 = np.uint64(27), np.uint64(31), np.uint64(33)
U30, U64 = np.uint64(30), np.uint64(64)
ZERO, ONE = np.uint64(0), np.uint64(1)


@njit(**leaf)
def _rotl(x, r):
    return (x << r) | (x >> (U64 - r))


@njit(**leaf)
def _mix(k):
    k ^= k >> U33
    k *= M1
    k ^= k >> U33
    k *= M2
    k ^= k >> U33
    return k


@njit(**leaf)
def _load(buf, at, n):
    """n <= 8 bytes from `at` as one little-endian word."""
    word = ZERO
    for i in range(n):
        word |= np.uint64(buf[at + i]) << np.uint64(8 * i)
    return word


@njit(**leaf)
def hash128(buf, at, n):
    """MurmurHash3 x64 128 (Appleby, public domain), seed 0, of buf[at : at + n] -> (h0, h1) u8.

    h0 is never 0 (a hash of 0 becomes 1), so that a row of zeros is nobody's.
    """
    h1 = ZERO
    h2 = ZERO
    end = at + (n // 16) * 16
    while at < end:
        h1 ^= _rotl(load8(buf, at) * C1, U31) * C2
        h1 = (_rotl(h1, U27) + h2) * FIVE + ADD1
        h2 ^= _rotl(load8(buf, at + 8) * C2, U33) * C1
        h2 = (_rotl(h2, U31) + h1) * FIVE + ADD2
        at += 16
    rest = n % 16
    if rest > 8:
        h2 ^= _rotl(_load(buf, at + 8, rest - 8) * C2, U33) * C1
    if rest > 0:
        h1 ^= _rotl(_load(buf, at, min(rest, 8)) * C1, U31) * C2
    h1 ^= np.uint64(n)
    h2 ^= np.uint64(n)
    h1 += h2
    h2 += h1
    h1 = _mix(h1)
    h2 = _mix(h2)
    h1 += h2
    h2 += h1
    if h1 == ZERO:
        h1 = ONE
    return h1, h2


@njit(**leaf)
def find(table, hash0, hash1, h0, h1):
    """Slot of the key with hash (h0, h1), or -1."""
    mask = np.int64(table.shape[0] - 1)
    p = np.int64(h0) & mask
    while True:
        slot = np.int64(table[p]) - 1
        if slot < 0:
            return np.int64(-1)
        if hash0[slot] == h0 and hash1[slot] == h1:
            return slot
        p = (p + 1) & mask


@njit(**leaf)
def insert(table, hash0, h0, slot):
    """Enter `slot` under h0 (not there yet; hash0[slot] and hash1[slot] are the caller's to set)."""
    mask = np.int64(table.shape[0] - 1)
    p = np.int64(h0) & mask
    while table[p] != 0:
        p = (p + 1) & mask
    table[p] = slot + 1


@njit(**leaf)
def remove(table, hash0, slot):
    """Take `slot` out by shifting back what follows it; hash0[slot] still holds its hash.

    True if it was there. Leaves no tombstones (Knuth, TAOCP 3, 6.4, algorithm R).
    """
    mask = np.int64(table.shape[0] - 1)
    hole = np.int64(hash0[slot]) & mask
    while table[hole] != slot + 1:
        if table[hole] == 0:
            return False
        hole = (hole + 1) & mask
    p = hole
    while True:
        p = (p + 1) & mask
        entry = np.int64(table[p])
        if entry == 0:
            break
        home = np.int64(hash0[entry - 1]) & mask
        # it may move into the hole only if its home is not in (hole, p]
        if ((p - home) & mask) >= ((p - hole) & mask):
            table[hole] = entry
            hole = p
    table[hole] = 0
    return True


@njit(**leaf)
def locate(table, hash0, hash1, rows, slots):
    """slots[i] = slot of event i's key or -1; returns how many are missing. rows is EVENT[n]."""
    missing = 0
    for i in range(rows.shape[0]):
        slots[i] = find(table, hash0, hash1, rows[i].hash0, rows[i].hash1)
        if slots[i] < 0:
            missing += 1
    return missing


@njit(**leaf)
def hash_all(buf, at, hash0, hash1):
    """Hash buf[at[i] : at[i + 1]] into hash0[i], hash1[i] for all i."""
    for i in range(hash0.shape[0]):
        hash0[i], hash1[i] = hash128(buf, np.int64(at[i]), np.int64(at[i + 1]) - np.int64(at[i]))


@njit(**leaf)
def find_all(table, hash0, hash1, buf, at, out):
    """Slots of the keys buf[at[i] : at[i + 1]] into out[i], -1 where it is not there."""
    for i in range(out.shape[0]):
        h0, h1 = hash128(buf, np.int64(at[i]), np.int64(at[i + 1]) - np.int64(at[i]))
        out[i] = find(table, hash0, hash1, h0, h1)


@njit(**leaf)
def insert_all(table, hash0, hash1, n):
    """Enter slots 0..n-1; returns the first slot whose key was there already, or -1."""
    for i in range(n):
        if find(table, hash0, hash1, hash0[i], hash1[i]) >= 0:
            return i
        insert(table, hash0, hash0[i], i)
    return -1
