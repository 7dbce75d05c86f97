"""Problem sizes shared by the tests and the benchmark of `segment_sum`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Spec:
  """M rows of C channels in S segments."""

  m: int
  s: int
  c: int
  dtype: str = "float32"

  def __str__(self) -> str:
    return f"m{self.m}-s{self.s}-c{self.c}-{self.dtype}"


# More rows a segment than one program reads, fewer than one, one of each.
TESTS = (
  Spec(300, 3, 5),
  Spec(90, 200, 48, "bfloat16"),
  Spec(1, 1, 1),
)
# Points to voxels, voxels to superpoints, voxels to scenes.
GPU = tuple(
  Spec(m, s, c, dtype)
  for m, s, c in (
    (1_000_000, 400_000, 64),
    (1_000_000, 8_000, 64),
    (480_000, 4, 96),
  )
  for dtype in ("float32", "bfloat16")
)
