"""Hash, table and their oracles: MurmurHash3 in plain Python, and a dict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamai.events import EVENT
from streamai.kernels.index import find, hash128, hash_all, insert, insert_all, locate, remove

MASK = (1 << 64) - 1


def murmur3(data: bytes) -> tuple[int, int]:
    """MurmurHash3_x64_128, seed 0, from its description."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = 0

    def rotl(x, r):
        return ((x << r) | (x >> (64 - r))) & MASK

    def mix(k):
        k ^= k >> 33
        k = k * 0xFF51AFD7ED558CCD & MASK
        k ^= k >> 33
        k = k * 0xC4CEB9FE1A85EC53 & MASK
        return k ^ k >> 33

    blocks = len(data) // 16
    for i in range(blocks):
        k1 = int.from_bytes(data[16 * i : 16 * i + 8], "little")
        k2 = int.from_bytes(data[16 * i + 8 : 16 * i + 16], "little")
        h1 ^= rotl(k1 * c1 & MASK, 31) * c2 & MASK
        h1 = ((rotl(h1, 27) + h2) * 5 + 0x52DCE729) & MASK
        h2 ^= rotl(k2 * c2 & MASK, 33) * c1 & MASK
        h2 = ((rotl(h2, 31) + h1) * 5 + 0x38495AB5) & MASK
    rest = data[16 * blocks :]
    h2 ^= rotl(int.from_bytes(rest[8:], "little") * c2 & MASK, 33) * c1 & MASK
    h1 ^= rotl(int.from_bytes(rest[:8], "little") * c1 & MASK, 31) * c2 & MASK
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    h1, h2 = mix(h1), mix(h2)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    return h1 or 1, h2


def hash_of(data: bytes, before: bytes = b"") -> tuple[int, int]:
    buf = np.frombuffer(bytearray(before + data + b"tail"), np.uint8)
    h0, h1 = hash128(buf, len(before), len(data))
    return int(h0), int(h1)


@pytest.mark.parametrize(
    ("text", "h0", "h1"),
    [
        (b"hello", 0xCBD8A7B341BD9B02, 0x5B1E906A48AE1D19),
        (b"The quick brown fox jumps over the lazy dog", 0xE34BBC7BBC071B6C, 0x7A433CA9C49A9347),
    ],
)
def test_published_values(text, h0, h1):
    assert hash_of(text) == (h0, h1) == murmur3(text)


@settings(deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=9))
def test_hash_is_murmur3_wherever_the_key_lies(data, before):
    assert hash_of(data, before) == murmur3(data)


def test_the_hash_of_nothing_is_not_zero():
    assert hash_of(b"") == (1, 0)


HASHES = st.integers(0, 7).map(lambda low: low | 1 << 63)  # few homes: long runs, wrap-around


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["insert", "remove"]), HASHES, st.integers(0, 3)), max_size=60))
def test_a_table_is_a_dict(commands):
    table, n = np.zeros(64, np.int32), 32
    hash0, hash1 = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
    free, there = list(range(n)), {}
    for command, h0, h1 in commands:
        key = (h0 * 9 & MASK, h1)
        slot = find(table, hash0, hash1, np.uint64(key[0]), np.uint64(key[1]))
        assert slot == there.get(key, -1)
        if command == "insert" and slot < 0:
            slot = there[key] = free.pop()
            hash0[slot], hash1[slot] = key
            insert(table, hash0, np.uint64(key[0]), slot)
        elif command == "remove" and slot >= 0:
            assert remove(table, hash0, slot)
            assert not remove(table, hash0, slot)
            free.append(there.pop(key))
    assert np.count_nonzero(table) == len(there)
    for (h0, h1), slot in there.items():
        assert find(table, hash0, hash1, np.uint64(h0), np.uint64(h1)) == slot


def test_runs_that_wrap_around_the_end_survive_removal():
    table, hash1 = np.zeros(8, np.int32), np.zeros(4, np.uint64)
    hash0 = np.array([6, 7, 7, 6], np.uint64)
    hash1[:] = range(4)
    for slot in range(4):
        insert(table, hash0, hash0[slot], slot)
    remove(table, hash0, 0)
    assert [find(table, hash0, hash1, hash0[s], hash1[s]) for s in range(4)] == [-1, 1, 2, 3]
    assert np.count_nonzero(table) == 3


def test_locate_gives_slots_and_counts_the_missing():
    keys = [b"a", b"bb", b"ccc"]
    at = np.array([0, 1, 3, 6])
    hash0, hash1 = np.zeros(3, np.uint64), np.zeros(3, np.uint64)
    hash_all(np.frombuffer(bytearray(b"".join(keys)), np.uint8), at, hash0, hash1)
    table = np.zeros(8, np.int32)
    assert insert_all(table, hash0, hash1, 2) == -1
    rows, slots = np.zeros(3, EVENT), np.zeros(3, np.int32)
    rows["hash0"], rows["hash1"] = hash0[[2, 0, 1]], hash1[[2, 0, 1]]
    assert locate(table, hash0, hash1, rows, slots) == 1
    assert slots.tolist() == [-1, 0, 1]
    assert insert_all(np.zeros(8, np.int32), hash0[[0, 1, 0]], hash1[[0, 1, 0]], 3) == 2
