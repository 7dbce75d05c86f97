"""Charts and markup: what is drawn where, and what cannot break out."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import Page

from wsegpc_jax.report import charts
from wsegpc_jax.report.markup import Markup, join, tag

WIDTH, HEIGHT = 340, 210  # of the viewBox


def series(y, x=None, name="run", style=0):
  y = np.array(y, np.float64)
  x = np.arange(1, len(y) + 1) if x is None else np.array(x)
  return charts.Series(name, x, y, style)


def drawn(page, style=0):
  """Polylines of a series: a list of pixels float [n, 2] for each part."""
  [line] = [a for a in page.all("path", "line") if f"s{style}" in a["class"]]
  parts = re.findall(r"M([^M]*)", line["d"])
  return [
    np.array([list(map(float, p.split())) for p in part.split("L")])
    for part in parts
  ]


def dots(page):
  return np.array(
    [[float(a["cx"]), float(a["cy"])] for a in page.all("circle")]
  ).reshape(-1, 2)


@settings(max_examples=40)
@given(
  st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
  st.booleans(),
)
def test_values_become_places(values, zero):
  page = Page(charts.line_chart("loss", [series(values)], zero=zero))
  [points] = drawn(page)
  assert len(points) == len(values)
  assert (points >= 0).all() and (points <= (WIDTH, HEIGHT)).all()
  assert (np.diff(points[:, 0]) > 0).all()
  # A higher value is not drawn lower, and equal distances stay equal: pixels
  # are rounded to a tenth.
  y, pixel = np.array(values), -points[:, 1]
  order = np.argsort(y, kind="stable")
  assert (np.diff(pixel[order]) >= -0.11).all()
  if np.ptp(y) > 1e-3:
    scale = np.ptp(pixel) / np.ptp(y)
    expected = pixel[order[0]] + (y - y.min()) * scale
    np.testing.assert_allclose(pixel, expected, atol=0.21)


def test_gaps_part_a_line():
  values = [1, 2, np.nan, 3, np.inf, -np.inf, 4, 5, 1e300]
  page = Page(charts.line_chart("loss", [series(values)]))
  assert [len(part) for part in drawn(page)] == [2, 1, 2]
  titles = [t for path, t in page.texts if path[-1] == "title"]
  assert titles == [
    "run, step 1: 1", "run, step 2: 2", "run, step 4: 3", "run, step 7: 4",
    "run, step 8: 5",
  ]  # fmt: skip


def test_a_long_line_is_thinned_to_means():
  values = np.sin(np.arange(1000) / 50) + 3
  page = Page(charts.line_chart("loss", [series(values)]))
  [points] = drawn(page)
  assert len(points) == 120
  thin = charts.thinned(series(values))
  assert thin.y[0] == pytest.approx(values[:8].mean())
  # Means over all parts, weighted by their size, are the mean of all.
  sizes = np.diff(np.linspace(0, 1000, 121).astype(int))
  assert np.average(thin.y, weights=sizes) == pytest.approx(values.mean())


@pytest.mark.parametrize("values", [[np.nan], [], [np.inf, np.nan]])
def test_nothing_finite_is_a_sentence(values):
  page = Page(charts.line_chart("loss", [series(values)]))
  assert not page.all("svg")
  assert "No finite values." in page.text()


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 7.0])
def test_a_single_point_is_inside(value, zero):
  page = Page(charts.line_chart("loss", [series([value])], zero=zero))
  [point] = dots(page)
  assert 0 < point[0] < WIDTH and 0 < point[1] < HEIGHT


@settings(max_examples=50)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e9))
def test_ticks_are_few_even_and_within(low, span):
  high = low + span
  found = charts.ticks(low, high)
  assert 1 <= len(found) <= 5
  slack = 1e-6 * span + 1e-9 * abs(low)
  assert low - slack <= found[0] and found[-1] <= high + slack
  if len(found) > 2:
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-3)


def test_series_share_the_axes():
  low, high = series([0, 1]), series([10, 20], name="other", style=1)
  page = Page(charts.line_chart("x", [low, high]))
  assert drawn(page)[0][:, 1].min() > drawn(page, 1)[0][:, 1].max()
  assert "other from 10 to 20" in page.all("svg")[0]["aria-label"]


@settings(max_examples=40)
@given(*[st.text("<>&\"'ab ;/=\0é") for _ in range(2)])
def test_text_is_only_text(text, attribute):
  whole = tag("p", text, title=attribute, class_=None, hidden=False)
  page = Page(whole)
  assert [name for name, _, _ in page.elements] == ["p"]
  assert page.elements[0][1].keys() == {"title"}
  assert "<" not in whole.removeprefix("<p").removesuffix("</p>")


def test_markup_is_left_as_it_is():
  assert tag("b", tag("i", "a & b"), None, 3) == "<b><i>a &amp; b</i>3</b>"
  assert tag("img", src="x", alt="") == '<img src="x" alt="">'
  assert join([Markup("<br>"), "<br>"]) == "<br>&lt;br&gt;"
  assert tag("details", open=True) == "<details open></details>"
