"""What the ladder is to show, held against the spread over seeds.

Rows of one seed share rooms and random numbers, so their differences are taken
seed by seed. A difference counts when its mean is larger than its sample
standard deviation over the seeds; with one seed nothing can be said.
"""

import dataclasses
import statistics
from collections.abc import Sequence

from wsegpc_jax.ladder import rows

BASELINE = "baseline"


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim on two rows, and what the seeds say.

  Attributes:
    lower, higher: rows; the second is to score higher.
    measure: key of the results' rows.
    strict: higher beyond the spread, or only not lower beyond it.
    differences: higher minus lower, fractions, one a seed.
    holds: None with one seed.
  """

  lower: str
  higher: str
  measure: str
  strict: bool
  differences: tuple[float, ...]

  @property
  def mean(self) -> float:
    return statistics.fmean(self.differences)

  @property
  def spread(self) -> float | None:
    """Sample standard deviation over the seeds; None with one seed."""
    if len(self.differences) < 2:
      return None
    return statistics.stdev(self.differences)

  @property
  def holds(self) -> bool | None:
    if self.spread is None:
      return None
    return self.mean > (self.spread if self.strict else -self.spread)

  def __str__(self) -> str:
    sign = "<" if self.strict else "<="
    said = {True: "holds", False: "DOES NOT HOLD", None: "one seed: open"}
    spread = "" if self.spread is None else f" +- {100 * self.spread:.1f}"
    higher = sum(d > 0 for d in self.differences)
    return (
      f"{self.measure}: {self.lower} {sign} {self.higher}: "
      f"{100 * self.mean:+.1f}{spread} points, higher in {higher} of "
      f"{len(self.differences)} seeds: {said[self.holds]}"
    )


# (lower, higher, measure, strict); equal steps on both sides of the first four.
_CLAIMS = (
  ("cam", "cmg", "pseudo_label_miou", True),
  ("cam_long", "cmg_long", "pseudo_label_miou", True),
  ("cam_long", "rpc", "pseudo_label_miou", True),
  ("cmg_long", "rpc", "pseudo_label_miou", False),
  ("rpc", "seg", "val_miou", True),
  *((BASELINE, name, "val_miou", True) for name in rows.NAMES),
  *(
    (BASELINE, name, "pseudo_label_miou", True)
    for name in rows.NAMES
    if name not in ("seg", "full")
  ),
)


def check(results: dict, *, objects: bool = False) -> Sequence[Claim]:
  """The claims on the rows that are there.

  Args:
    results: content of a results file.
    objects: mean over the classes that are not structural.
  """
  entries = {**results["rows"], BASELINE: results.get("baseline") or {}}
  found = []
  for lower, higher, measure, strict in _CLAIMS:
    key = f"{measure}_objects" if objects else measure
    a, b = (entries.get(name, {}).get(key) for name in (lower, higher))
    if a is None or b is None:
      continue
    differences = tuple(y - x for x, y in zip(a, b, strict=True))
    found.append(Claim(lower, higher, key, strict, differences))
  return found
