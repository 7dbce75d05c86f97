"""Line charts as inline SVG.

A chart is drawn for a width of about 340 pixels and scales; several stand side
by side where there is room. Colours and dashes come from the page's style, by
the number of the series (`s0`, `s1`, ...).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from wsegpc_jax.report.markup import Markup, join, tag

STYLES = 8  # different series; then they come again

_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 10, 34
_MOST = 120  # points of a line; more are averaged
_DOTS = 40  # points of a line that are marked
_LARGEST = 1e30  # what exceeds it has diverged, and is a gap


@dataclasses.dataclass(frozen=True)
class Series:
  """A line of a chart.

  Attributes:
    name: for the text shown on hovering.
    x, y: float [T]; where y is not finite the line has a gap.
    style: number of its colour and dash.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  style: int = 0


@dataclasses.dataclass(frozen=True)
class Axis:
  """Maps values of low..high to pixels of start..end."""

  low: float
  high: float
  start: float
  end: float

  def __call__(self, value):
    share = (value - self.low) / (self.high - self.low)
    return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers within low..high, at most so many, evenly spaced."""
  if not high > low:
    return [low]
  rough = (high - low) / most
  power = 10.0 ** math.floor(math.log10(rough))
  for factor in (1, 2, 2.5, 5, 10, 20):
    step = factor * power
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    if last - first + 1 <= most:
      break
  return [number * step for number in range(first, last + 1)]


def _bounded(series: Series) -> Series:
  y = np.where(np.abs(series.y) < _LARGEST, series.y, np.nan)
  return dataclasses.replace(series, y=y)


def thinned(series: Series) -> Series:
  """At most _MOST points: means over neighbouring ones, gaps left out."""
  n = len(series.x)
  if n <= _MOST:
    return series
  edges = np.linspace(0, n, _MOST + 1).astype(int)
  parts = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
  x = np.array([series.x[part].mean() for part in parts])
  y = np.array([_mean(series.y[part]) for part in parts])
  return dataclasses.replace(series, x=x, y=y)


def _mean(values):
  values = values[np.isfinite(values)]
  return values.mean() if len(values) else np.nan


def axes(series: Sequence[Series], *, zero: bool) -> tuple[Axis, Axis]:
  """Axes that hold every finite point; y begins at 0 if asked for."""
  x = np.concatenate([s.x[np.isfinite(s.y)] for s in series])
  y = np.concatenate([s.y[np.isfinite(s.y)] for s in series])
  low, high = (0.0, max(y.max(), 0.0)) if zero else (y.min(), y.max())
  if zero and y.min() < 0:
    low = y.min()
  if not high > low:  # a single value
    room = abs(high) / 2 or 1.0
    low, high = (0.0, high + room) if zero else (low - room, high + room)
  if not zero:
    pad = 0.06 * (high - low)
    low, high = low - pad, high + pad
  else:
    high += 0.06 * (high - low)
  first, last = x.min(), x.max()
  if not last > first:
    first, last = first - 1, last + 1
  return (
    Axis(first, last, _LEFT, _WIDTH - _RIGHT),
    Axis(low, high, _HEIGHT - _BOTTOM, _TOP),
  )


def path(x: np.ndarray, y: np.ndarray) -> str:
  """SVG path through pixels float [T]; a gap where y is not finite."""
  parts, pen = [], "M"
  for a, b in zip(x, y, strict=True):
    if not math.isfinite(b):
      pen = "M"
      continue
    parts.append(f"{pen}{a:.1f} {b:.1f}")
    pen = "L"
  return "".join(parts)


def line_chart(
  title: str, series: Sequence[Series], *, unit: str = "", zero: bool = False
) -> Markup:
  """A figure with its lines over steps; a sentence if nothing is finite.

  Args:
    title: of the chart.
    series: lines; x is the step.
    unit: of y, for the title.
    zero: whether y begins at 0.
  """
  series = [thinned(_bounded(s)) for s in series if len(s.x)]
  series = [s for s in series if np.isfinite(s.y).any()]
  caption = f"{title}, {unit}" if unit else title
  if not series:
    return tag(
      "figure",
      tag("figcaption", caption),
      tag("p", "No finite values.", class_="missing"),
      class_="chart",
    )
  x_axis, y_axis = axes(series, zero=zero)
  ends = "; ".join(
    f"{s.name} from {_number(y[0])} to {_number(y[-1])}"
    for s in series
    for y in [s.y[np.isfinite(s.y)]]
  )
  svg = tag(
    "svg",
    _grid(x_axis, y_axis),
    *(_line(s, x_axis, y_axis) for s in series),
    viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
    role="img",
    aria_label=f"{caption}, by step: {ends}",
  )
  return tag("figure", tag("figcaption", caption), svg, class_="chart")


def sample(style: int) -> Markup:
  """A short piece of the line of a series, for a legend."""
  line = tag("path", d="M0 5H30", class_=f"line {_style(style)}")
  dot = tag("circle", cx=15, cy=5, r=2.6, class_=f"dot {_style(style)}")
  return tag(
    "svg", line, dot, viewBox="0 0 30 10", class_="sample", aria_hidden="true"
  )


def _style(number: int) -> str:
  return f"s{number % STYLES}"


def _grid(x_axis: Axis, y_axis: Axis) -> Markup:
  left, right = x_axis.start, x_axis.end
  parts = []
  for value in ticks(y_axis.low, y_axis.high):
    y = f"{y_axis(value):.1f}"
    parts += [
      tag("path", d=f"M{left} {y}H{right}", class_="grid"),
      tag(
        "text", _number(value), x=left - 6, y=y, dy=".32em", text_anchor="end"
      ),
    ]
  bottom = y_axis.start
  for value in ticks(x_axis.low, x_axis.high, 4):
    if value != round(value):
      continue
    x = x_axis(value)
    label = tag(
      "text",
      f"{value:.0f}",
      x=f"{x:.1f}",
      y=bottom + 15,
      text_anchor="end" if x > right - 12 else "middle",
    )
    parts += [
      tag("path", d=f"M{x:.1f} {bottom}v4", class_="axis"),
      label,
    ]
  parts += [
    tag("path", d=f"M{left} {bottom}H{right}", class_="axis"),
    tag(
      "text",
      "step",
      x=(left + right) / 2,
      y=bottom + 30,
      text_anchor="middle",
      class_="name",
    ),
  ]
  return join(parts)


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> Markup:
  style = _style(series.style)
  x, y = x_axis(series.x), y_axis(series.y)
  finite = np.flatnonzero(np.isfinite(series.y))
  dot = f"dot {style}" if len(finite) <= _DOTS else f"dot {style} hidden"
  dots = [
    tag(
      "circle",
      tag(
        "title",
        f"{series.name}, step {series.x[i]:.0f}: {_number(series.y[i])}",
      ),
      cx=f"{x[i]:.1f}",
      cy=f"{y[i]:.1f}",
      r=2.2,
      class_=dot,
    )
    for i in finite
  ]
  return join([tag("path", d=path(x, y), class_=f"line {style}"), *dots])


def _number(value: float) -> str:
  """Three digits, without an exponent where it can be avoided."""
  if value == 0:
    return "0"
  text = f"{value:.3g}"
  if "e" in text and 1e-4 <= abs(value) < 1e6:
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.6f}".rstrip("0")
  return text
