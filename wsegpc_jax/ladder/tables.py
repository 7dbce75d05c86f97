"""The ladder as a table, for the screen and for the README."""

import statistics
from collections.abc import Sequence

from wsegpc_jax.ladder import rows

_COLUMNS = (
  ("pseudo-labels", "pseudo_label_miou"),
  ("objects", "pseudo_label_miou_objects"),
  ("held-out", "val_miou"),
  ("objects", "val_miou_objects"),
  ("with tags", "val_miou_tags"),
)
HEAD = ("row", *(title for title, _ in _COLUMNS), "steps", "seconds")


def mean_and_spread(values: Sequence[float] | None) -> str:
  """In percent: mean +- sample standard deviation; "-" = does not apply."""
  if not values:
    return "-"
  mean = f"{100 * statistics.fmean(values):.1f}"
  if len(values) < 2:
    return mean
  return f"{mean} ± {100 * statistics.stdev(values):.1f}"


def cells(results: dict) -> list[tuple[str, ...]]:
  """Rows of the table, the baseline first, in the ladder's order."""
  table = []
  entries = {"baseline": results.get("baseline"), **results["rows"]}
  titles = {"baseline": "chance, floor and walls by geometry"}
  titles |= {row.name: row.title for row in rows.ROWS}
  for name in ("baseline", *rows.NAMES):
    entry = entries.get(name)
    if not entry:
      continue
    seconds = entry.get("seconds")
    table.append(
      (
        titles[name],
        *(mean_and_spread(entry.get(key)) for _, key in _COLUMNS),
        str(entry.get("steps", "-")),
        f"{statistics.fmean(seconds):.0f}" if seconds else "-",
      )
    )
  return table


def grid(lines: Sequence[Sequence[str]]) -> str:
  """Lines of cells as a table for the screen; the first is its head."""
  width = [max(map(len, column)) for column in zip(*lines, strict=True)]
  out = []
  for line in lines:
    first = line[0].ljust(width[0])
    rest = (c.rjust(w) for c, w in zip(line[1:], width[1:], strict=True))
    out.append("  ".join((first, *rest)))
  rule = "-" * len(out[0])
  return "\n".join([rule, out[0], rule, *out[1:], rule])


def text(results: dict) -> str:
  """The table for the screen; mIoU in percent."""
  return grid([HEAD, *cells(results)])


def markdown(all_results: Sequence[dict]) -> str:
  """The README's table: one for each results file, under its machine."""
  parts = []
  for results in all_results:
    number = len(results.get("seeds") or next(_lists(results)))
    rooms = results.get("rooms") or {}
    said = ", ".join(f"{n} {split}" for split, n in rooms.items())
    lines = [HEAD, ("---",) * len(HEAD), *cells(results)]
    parts.append(
      f"`{results['command']}`, {results['date']}, {results['machine']}; "
      f"{number} seeds{f'; rooms: {said}' if said else ''}; mIoU in %, mean ± "
      "standard deviation over seeds:\n\n"
      + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    )
  return "\n\n".join(parts)


def _lists(results: dict):
  return (entry["val_miou"] for entry in results["rows"].values())
