"""The report of one or several runs, as one self-contained HTML page.

`read_stage` reads a working directory, `write` makes the page; `rooms` has
what reads and predicts the scenes that are shown, and is imported by itself
because all that runs a network comes with it.
"""

from wsegpc_jax.report.page import render, write
from wsegpc_jax.report.reading import read_score, read_stage
from wsegpc_jax.report.records import (
  Column,
  Curve,
  Room,
  Row,
  Score,
  Stage,
  Table,
  View,
)

__all__ = [
  "Column",
  "Curve",
  "Room",
  "Row",
  "Score",
  "Stage",
  "Table",
  "View",
  "read_score",
  "read_stage",
  "render",
  "write",
]
