"""Problem sizes shared by the tests and the benchmark of `strided_conv`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Spec:
  """M fine rows under P coarse ones, C channels in, D out."""

  m: int
  p: int
  c: int
  d: int
  dtype: str = "float32"

  def __str__(self) -> str:
    return f"m{self.m}-p{self.p}-c{self.c}-d{self.d}-{self.dtype}"


TESTS = (
  Spec(150, 40, 6, 20),
  Spec(1, 1, 48, 3, "bfloat16"),
)
# Levels of a surface: a parent has three to four children.
GPU = tuple(
  Spec(rows, rows * 2 // 7, c, c, dtype)
  for rows, c in ((1_000_000, 32), (300_000, 64), (80_000, 128))
  for dtype in ("float32", "bfloat16")
)
