"""The report of one seed of the ladder."""

from collections.abc import Sequence
from pathlib import Path

from wsegpc_jax import inputs, report
from wsegpc_jax.ladder import rows
from wsegpc_jax.ladder.run import Ladder
from wsegpc_jax.report import rooms as report_rooms

_TRAINING_ROOMS = 2
_HELD_OUT_ROOMS = 2
_VIEWS = 2


def write(
  path: str | Path,
  ladder: Ladder,
  seed: int,
  results: dict,
  *,
  title: str,
  intro: str,
) -> int:
  """Writes the HTML report of the rows of a seed; returns its size in bytes.

  Args:
    path: of the page.
    ladder: whose rows have been run.
    seed: of the trainings.
    results: content of the results file, with this seed alone.
    title, intro: headline and first paragraph.
  """
  names = [row.name for row in rows.ROWS if row.name in results["rows"]]
  stages = [
    report.read_stage(ladder.row_dir(seed, name), name=name, score="val")
    for name in names
  ]
  rooms = _rooms(ladder, seed, names)
  return report.write(
    path,
    stages,
    title=title,
    intro=intro,
    table=stage_table(results),
    rooms=rooms,
    rooms_note="Training rooms with the labels that stages 1 and 2 give them, "
    "tags known; held-out rooms as the networks see them, without tags.",
  )


def stage_table(results: dict) -> report.Table:
  """The report's table: mIoU of each row, and of chance, as fractions.

  Args:
    results: content of the results file; the first seed counts.
  """
  measures = (
    ("pseudo-labels", "pseudo_label_miou"),
    ("held-out rooms", "val_miou"),
    ("held-out, objects", "val_miou_objects"),
    ("held-out, tags known", "val_miou_tags"),
  )

  def note(key):
    protocol = results["protocols"][key.removesuffix("_objects")]
    of = ""
    if key.endswith("_objects"):
      of = f"; mean without {', '.join(results['structural'])}"
    return f"mIoU; {protocol}{of}."

  columns = [
    report.Column(head, better="high", note=note(key)) for head, key in measures
  ]
  columns.append(report.Column("seconds", kind="seconds"))

  def row(title, entry, *, baseline=False):
    cells = [entry[key] and entry[key][0] for _, key in measures]
    seconds = entry.get("seconds")
    return report.Row(
      title,
      (*cells, seconds and seconds[0]),
      baseline=baseline,
    )

  table = []
  if results["baseline"]:
    title = "chance, floor and walls by geometry"
    table.append(row(title, results["baseline"], baseline=True))
  for one in rows.ROWS:
    if one.name in results["rows"]:
      table.append(row(one.title, results["rows"][one.name]))
  return report.Table(tuple(columns), tuple(table))


def _rooms(
  ladder: Ladder, seed: int, names: Sequence[str]
) -> tuple[report.Room, ...]:
  """Training rooms with pseudo-labels, held-out rooms with predictions."""
  columns = {
    "cam": "CAM only",
    "rpc": "RPC",
    "seg": "stage 3",
  }
  shown = [name for name in columns if name in names]
  if not shown:
    return ()
  config = ladder.config(rows.find(shown[0]), seed)
  dataset = inputs.open_data(config)

  def source(name, *, labelled):
    weak = name != "seg"
    suffix = " pseudo-labels" if labelled and weak else ""
    return report_rooms.Source(
      title=f"{columns[name]}{suffix}",
      workdir=str(ladder.row_dir(seed, name)),
      pixels=f"{columns[name]}, 2D network",
      stored=labelled and weak,
      use_tags=labelled and weak,
      superpoints="mean" if labelled and weak else "none",
    )

  found: tuple[report.Room, ...] = ()
  for split, number, labelled, note in (
    (config.data.train_split, _TRAINING_ROOMS, True, "A training room."),
    (config.eval.split, _HELD_OUT_ROOMS, False, "A held-out room."),
  ):
    found += report_rooms.read_rooms(
      dataset,
      report_rooms.spread(inputs.split_scenes(dataset, split), number),
      [source(name, labelled=labelled) for name in shown],
      views=_VIEWS,
      note=note,
    )
  return found
