from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.numerics_oracles import F32, F64, exp32, f32, fma32, instruction_set, same_bits
from penstock import _core

ISAS = _core.isas()
U32 = 0xFFFFFFFF


def rope_table(positions: list[int], inv_freq: npt.ArrayLike) -> tuple[F32, F32]:
    frequencies = np.asarray(inv_freq, np.float32)
    cos, sin = (np.empty((len(positions), len(frequencies)), np.float32) for _ in range(2))
    _core.rope_table(np.asarray(positions, np.int64), frequencies, cos, sin)
    return cos, sin


def exp(x: npt.ArrayLike, threads: int = 1) -> F32:
    x = np.asarray(x, np.float32)
    out = np.empty_like(x)
    _core.exp(_core.ThreadPool(threads, 1 << 16), x, out)
    return out


def gumbel(seed: int, choice: int, position: int, tokens: npt.ArrayLike) -> F64:
    ids = np.asarray(tokens, np.int64)
    out = np.empty(len(ids), np.float64)
    _core.gumbel(seed, choice, position, ids, out)
    return out


# Exact arithmetic.

PI = Fraction(31415926535897932384626433832795028841971693993751058209749445923078164062862089986, 10**82)


def exact_cos_sin(angle: float) -> tuple[Fraction, Fraction]:
    """Cosine and sine with an error below 1e-40, for angles of a few hundred thousand at most."""
    x = Fraction(angle) % (2 * PI)
    x = Fraction(round(x * 2**200), 2**200)
    term, terms = Fraction(1), []
    for n in range(1, 70):
        terms.append(term)
        term = Fraction(round(term * x / n * 2**200), 2**200)
    signed = [t if n % 4 < 2 else -t for n, t in enumerate(terms)]
    return sum(signed[::2], Fraction(0)), sum(signed[1::2], Fraction(0))


def nearest_float32(x: Fraction) -> np.float32:
    """x rounded once, ties to even."""
    guess = np.float32(float(x))
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - x), f.view(np.uint32) & 1))


def exact_log(x: float) -> Fraction:
    """Natural logarithm with a relative error below 1e-30, by atanh series."""

    def atanh_twice(s: Fraction) -> Fraction:
        total, power = Fraction(0), s
        for n in range(1, 200, 2):
            total += power / n
            power = Fraction(round(power * s * s * 2**240), 2**240)
        return 2 * total

    mantissa, exponent = math.frexp(x)
    m = Fraction(mantissa)
    return atanh_twice((m - 1) / (m + 1)) + exponent * atanh_twice(Fraction(1, 3))


# The kernels' sequences, in Python floats, which are IEEE doubles.


def sine_polynomials(x: float) -> tuple[float, float]:
    """(cos x, sin x) step by step as in cpp/numerics/sin_cos.cpp."""
    k = (x * float.fromhex("0x1.45f306dc9c883p-1") + 1.5 * 2.0**52) - 1.5 * 2.0**52
    r = (x - k * float.fromhex("0x1.921fb54p+0")) - k * float.fromhex("0x1.10b46p-30")
    tail = k * float.fromhex("0x1.1a62633145c07p-54")
    high = r - tail
    part = r - high
    low = (r - (high + part)) + (part - tail)
    z = high * high
    sine_sum = cosine_sum = 0.0
    for n in range(7, -1, -1):
        sine_sum = sine_sum * z + (-1) ** (n + 1) / math.factorial(2 * n + 3)
        cosine_sum = cosine_sum * z + (-1) ** n / math.factorial(2 * n + 4)
    sine = high + (high * z * sine_sum + low)
    base = 1.0 - 0.5 * z
    cosine = base + (((1.0 - base) - 0.5 * z) + (z * z * cosine_sum - high * low))
    return [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)][int(k) % 4]


def natural_log(x: float) -> float:
    """log x step by step as in cpp/numerics/log.cpp."""
    offset = struct.unpack("<q", struct.pack("<d", x))[0] - 0x3FE6A09E667F3BCD
    exponent = float(offset >> 52)
    m: float = struct.unpack("<d", struct.pack("<q", (offset & (2**52 - 1)) + 0x3FE6A09E667F3BCD))[0]
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    series = 2.0 / 21
    for n in range(19, 1, -2):
        series = series * z + 2.0 / n
    correction = s * (f - z * series) - exponent * float.fromhex("0x1.ef35793c7673p-45")
    return exponent * float.fromhex("0x1.62e42fefa38p-1") + (f - correction)


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = high >> 32 ^ c1 ^ k0, high & U32, low >> 32 ^ c3 ^ k1, low & U32
        k0, k1 = (k0 + 0x9E3779B9) & U32, (k1 + 0xBB67AE85) & U32
    return [c0, c1, c2, c3]


def uniform(seed: int, choice: int, position: int, token: int) -> float:
    words = philox4x32([token & U32, position, choice, 0], [seed & U32, seed >> 32])
    return ((words[0] << 20 | words[1] >> 12) + 0.5) * 2.0**-52


def test_fma_oracle_rounds_once() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.standard_normal(2000).astype(np.float32) for _ in range(3))
    c[:1000] = -(a * b)[:1000] * (1 + rng.integers(-2, 3, 1000).astype(np.float32) * np.float32(2**-22))
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), fma32(a, b, c), strict=True):
        assert got == nearest_float32(Fraction(x) * Fraction(y) + Fraction(z))


def test_philox_oracle_gives_the_published_answers() -> None:
    """The known-answer vectors of Random123 (tests/kat_vectors, philox4x32 10)."""
    assert philox4x32([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox4x32([U32] * 4, [U32] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    digits_of_pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    assert philox4x32(digits_of_pi[:4], digits_of_pi[4:]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("limit", [4, 2000, 2**20])
def test_angles_are_rounded_correctly(limit: int) -> None:
    rng = np.random.default_rng(limit)
    angles = rng.uniform(-limit, limit, 300).astype(np.float32)
    cos, sin = rope_table([1], angles)
    for angle, c, s in zip(angles.tolist(), cos[0], sin[0], strict=True):
        exact_c, exact_s = exact_cos_sin(angle)
        assert (c, s) == (nearest_float32(exact_c), nearest_float32(exact_s))


def test_angles_next_to_multiples_of_half_pi() -> None:
    angles = (np.arange(1, 600_000, 1201) * (np.pi / 2)).astype(np.float32)
    cos, sin = rope_table([1], angles)
    for angle, c, s in zip(angles.tolist(), cos[0], sin[0], strict=True):
        exact_c, exact_s = exact_cos_sin(angle)
        assert (c, s) == (nearest_float32(exact_c), nearest_float32(exact_s))


def test_rope_table_is_the_fixed_sequence() -> None:
    rng = np.random.default_rng(5)
    inv_freq = np.concatenate([500000.0 ** -(np.arange(64) / 64), rng.uniform(-2, 2, 20)]).astype(np.float32)
    positions = [0, 1, 2, 4095, 131071, 2**20, *rng.integers(0, 2**20, 50).tolist()]
    cos, sin = rope_table(positions, inv_freq)
    expected = np.empty((2, *cos.shape), np.float32)
    for row, position in enumerate(positions):
        for i, frequency in enumerate(inv_freq):
            expected[:, row, i] = sine_polynomials(float(np.float32(position) * frequency))
    assert same_bits(cos, expected[0])
    assert same_bits(sin, expected[1])


def test_rope_table_agrees_with_libm() -> None:
    """libm's doubles are right to a unit in their last place or so."""
    inv_freq = f32(10000.0 ** -(np.arange(32) / 32))
    positions = list(range(0, 131072, 13))
    cos, sin = rope_table(positions, inv_freq)
    angles = (f32(positions)[:, None] * inv_freq).astype(np.float64)
    np.testing.assert_allclose(cos, np.cos(angles), rtol=6e-8, atol=0)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=6e-8, atol=0)


@pytest.mark.parametrize("frequency", [np.inf, np.nan, 2.0**26, -(2.0**26)])
def test_rope_table_refuses_angles_beyond_its_range(frequency: float) -> None:
    with pytest.raises(ValueError, match=r"^an angle is not finite or not below 2\^26$"):
        rope_table([0, 1], [1.0, frequency])


@given(st.integers(0, 2**64 - 1), st.integers(0, U32), st.integers(0, U32), st.lists(st.integers(0, U32), max_size=20))
def test_gumbel_is_the_fixed_sequence(seed: int, choice: int, position: int, tokens: list[int]) -> None:
    expected = [-natural_log(-natural_log(uniform(seed, choice, position, token))) for token in tokens]
    assert gumbel(seed, choice, position, tokens).tolist() == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, U32), st.integers(0, U32))
def test_each_part_of_the_key_matters(seed: int, choice: int, position: int) -> None:
    noise = gumbel(seed, choice, position, [1, 2])
    assert noise[0] != noise[1]
    others = [(seed ^ 1, choice, position), (seed ^ 1 << 63, choice, position), (seed, choice ^ 1, position)]
    for other in [*others, (seed, choice, position ^ 1)]:
        assert (gumbel(*other, [1, 2]) != noise).all()


@given(st.floats(2.0**-53, 40.0) | st.floats(0.9, 1.1) | st.integers(1, 2**53 - 1).map(lambda n: n * 2.0**-53))
def test_log_is_within_a_unit_in_the_last_place(x: float) -> None:
    exact = exact_log(x)
    assert abs(Fraction(natural_log(x)) - exact) <= Fraction(math.ulp(float(exact)))


def test_gumbel_noise_has_the_moments_of_its_distribution() -> None:
    n = 200_000
    noise = gumbel(7, 0, 0, np.arange(n))
    assert np.isfinite(noise).all()
    deviation = math.pi / math.sqrt(6)
    assert abs(noise.mean() - 0.5772156649) < 5 * deviation / math.sqrt(n)
    assert abs(noise.std() - deviation) < 0.02
    ranks = np.sort(np.exp(-np.exp(-noise)))
    assert np.abs(ranks - (np.arange(n) + 0.5) / n).max() < 2 / math.sqrt(n)


EDGES = [0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1, -1, 1e-45, -1e-45, 2**-25, -(2**-25), 3e38, -3e38]
EDGES += [88.72283, 88.72284, 89, -87.33654, -87.33655, -103.27892, -103.97208, -103.97209, -104, -105]


@pytest.mark.parametrize("isa", ISAS)
def test_exp_is_the_fixed_sequence(isa: str) -> None:
    step = 40009 if isa == "scalar" else 5003
    every_kind = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
    in_range = np.random.default_rng(2).uniform(-105, 90, 20_000).astype(np.float32)
    x = np.concatenate([f32(EDGES), in_range, every_kind])
    with instruction_set(isa):
        assert same_bits(exp(x), exp32(x))
        assert same_bits(exp(x, threads=3), exp32(x))


@pytest.mark.parametrize("isa", ISAS)
def test_exp_is_within_a_unit_in_the_last_place(isa: str) -> None:
    x = np.arange(0, 2**32, 10007 if isa == "scalar" else 1009, dtype=np.uint64).astype(np.uint32).view(np.float32)
    with instruction_set(isa), np.errstate(all="ignore"):
        got, exact = exp(x), np.exp(x.astype(np.float64))
        rounded = exact.astype(np.float32)
        finite = np.isfinite(rounded)
        assert same_bits(got[~finite], rounded[~finite])
        assert (np.abs(got - exact)[finite] < np.spacing(rounded[finite])).all()
        assert same_bits(exp(EDGES)[:6], f32([1, 1, np.inf, 0, np.nan, np.nan]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 33])
def test_exp_writes_n_values(isa: str, n: int) -> None:
    x, out = np.linspace(-3, 3, 40, dtype=np.float32), np.full(40, 7, np.float32)
    with instruction_set(isa):
        _core.exp(_core.ThreadPool(1, 1 << 16), x[:n], out[:n])
    assert same_bits(out[:n], exp32(x[:n]))
    assert (out[n:] == 7).all()
