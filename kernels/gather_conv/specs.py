"""Problem sizes shared by the tests and the benchmark of `gather_conv`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Spec:
  """One problem: N rows in, M rows out, K taps, C channels in, D out."""

  n: int
  m: int
  taps: int
  c: int
  d: int
  dtype: str = "float32"

  def __str__(self) -> str:
    shape = f"n{self.n}-m{self.m}-k{self.taps}-c{self.c}-d{self.d}"
    return f"{shape}-{self.dtype}"


# Channels that are no powers of two, more and fewer rows than a tile of any
# implementation, strided (M < N) and transposed (M > N) maps, more taps than
# one word of a bit mask holds.
TESTS = (
  Spec(40, 130, 27, 6, 20),
  Spec(90, 25, 8, 96, 6, "bfloat16"),
  Spec(70, 64, 125, 3, 17),
  Spec(1, 1, 27, 5, 3),
)
TEST_FLOAT64 = Spec(40, 70, 27, 6, 20, "float64")

# Layers on a surface of n = m voxels.
CPU = tuple(Spec(10_000, 10_000, 27, c, c) for c in (32, 64))
GPU = tuple(
  Spec(rows, rows, 27, c, c, dtype)
  for rows, c in (
    (480_000, 32),
    (100_000, 32),
    (100_000, 64),
    (100_000, 96),
    (25_000, 128),
    (6_000, 256),
  )
  for dtype in ("float32", "bfloat16")
)
