from __future__ import annotations

import pytest
from inner_loops import Kind, Loop, functions

ARM = """
neon.o:     file format elf64-littleaarch64


Disassembly of section .text:

0000000000000000 <void penstock::(anonymous namespace)::f<2>(int, long)>:
   0:\tcbz\tx0, 28 <void penstock::(anonymous namespace)::f<2>(int, long)+0x28>
   4:\tldr\tq0, [x1], #16
   8:\tfmla\tv2.4s, v0.4s, v1.4s
   c:\tprfm\tpldl2keep, [x1, #64]
  10:\tsubs\tx3, x3, #0x1
  14:\tb.ne\t8 <void penstock::(anonymous namespace)::f<2>(int, long)+0x8>  // b.any
  18:\tsub\tx0, x0, #0x1
  1c:\tcbnz\tx0, 4 <void penstock::(anonymous namespace)::f<2>(int, long)+0x4>
  20:\tsdot\tv2.4s, v0.16b, v1.16b
  24:\tb.eq\t20 <void penstock::(anonymous namespace)::f<2>(int, long)+0x20>
  28:\tret
"""
X86 = """
0000000000000000 <g>:
   0:\tvfmadd231ps (%rax),%ymm0,%ymm1
   5:\tjne    0 <g>
   7:\tret
"""


def test_innermost_loops_of_arm() -> None:
    (name, (inner, dots)), *others = functions(ARM).items()
    assert (name, others) == ("void f<2>(int, long)", [])
    assert [mnemonic for mnemonic, _ in inner.body] == ["fmla", "prfm", "subs", "b.ne"]
    assert (inner.products, dots.products, inner.vector_bytes) == (4, 16, 16)


def test_x86() -> None:
    (loop,) = functions(X86)["g"]
    assert (loop.products, len(loop.body), loop.vector_bytes) == (8, 2, 32)


@pytest.mark.parametrize(("fetches", "products", "expected"), [(True, None, 0), (False, None, 1), (True, 8, None)])
def test_which_is_chosen(fetches: bool, products: int | None, expected: int | None) -> None:
    loops = functions(ARM)["void f<2>(int, long)"]
    assert Kind("", "", fetches, products).choose(loops) is (None if expected is None else loops[expected])


def test_one_without_products_is_the_last_large_one() -> None:
    large, larger, small = (Loop((("add", ""),) * n) for n in (70, 90, 20))
    assert Kind("", "", False, 0).choose([large, larger, small]) is larger
