"""A PNG of a scene's layers, each with its title and legend."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsegpc_jax.palette import number_colors
from wsegpc_jax.viewer import render
from wsegpc_jax.viewer.frames import LinkedFrame, frustum
from wsegpc_jax.viewer.layers import Layer

VIEWS = ("room", "top")

_TITLE, _TEXT = 18, 13  # font sizes, pixels
_LINE, _MARGIN = 18, 8
_INK, _PAPER = (30, 30, 30), (255, 255, 255)  # the background of pictures
_FRUSTUM_DEPTH = 0.15  # metres
_WIRE = 0.012  # thickness in metres
_SIZE = 1.5  # of a point, in spacings of the points: surfaces look closed


def layer_pictures(
  coord: np.ndarray,
  layers: Sequence[Layer],
  size: tuple[int, int],
  *,
  view: str = "room",
  frames: Sequence[LinkedFrame] = (),
) -> list[np.ndarray]:
  """The layers as uint8 [H, W, 3], without text.

  Args:
    coord: float [N, 3], metres, z up.
    layers: colours of the points.
    size: (H, W).
    view: one of VIEWS.
    frames: their cameras are drawn as wires, each in its own colour, which is
      that of the layer "frame".
  """
  views = {"room": render.room_view, "top": render.top_view}
  eye, target, degrees = views[view](coord)
  pose = render.look_at(eye, target)
  # Drawn at twice the size and averaged, so that edges are smooth.
  large = (2 * size[0], 2 * size[1])
  wires = np.array([_wires(linked.frame) for linked in frames]).reshape(-1, 3)
  numbers = np.arange(len(frames)).repeat(len(wires) // max(len(frames), 1))
  spacing = render.point_spacing(coord)
  # What is seen does not depend on the layer.
  seen = render.visible_points(
    np.concatenate([wires, coord]),
    pose,
    render.fitted(coord, pose, large, degrees),
    large,
    point_size=np.repeat([_WIRE, _SIZE * spacing], [len(wires), len(coord)]),
  )
  pictures = []
  for layer in layers:
    color = np.concatenate([number_colors(numbers), layer.color])
    parts = render.paint(seen, color).reshape(size[0], 2, size[1], 2, 3)
    pictures.append(np.rint(parts.mean(axis=(1, 3))).astype(np.uint8))
  return pictures


def sheet(
  coord: np.ndarray,
  layers: Sequence[Layer],
  size: tuple[int, int],
  *,
  view: str = "room",
  frames: Sequence[LinkedFrame] = (),
) -> Image.Image:
  """All layers on one sheet, at most three side by side; arguments as above."""
  pictures = layer_pictures(coord, layers, size, view=view, frames=frames)
  pairs = zip(pictures, layers, strict=True)
  cells = [_with_text(picture, layer) for picture, layer in pairs]
  columns = min(len(cells), 3)
  rows = []
  for start in range(0, len(cells), columns):
    row = cells[start : start + columns]
    whole = Image.new(
      "RGB", (columns * size[1], max(cell.height for cell in row)), _PAPER
    )
    for column, cell in enumerate(row):
      whole.paste(cell, (column * size[1], 0))
    rows.append(whole)
  out = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), _PAPER)
  top = 0
  for row in rows:
    out.paste(row, (0, top))
    top += row.height
  return out


def _wires(frame):
  """Points [n, 3] along the edges of a frame's frustum."""
  corners = frustum(
    frame.pose, frame.intrinsics, frame.depth.shape, _FRUSTUM_DEPTH
  )
  edges = [(0, k) for k in range(1, 5)] + [(1, 2), (2, 3), (3, 4), (4, 1)]
  steps = np.linspace(0, 1, 100)
  first, last = corners[np.array(edges).T]
  return (first[:, None] + steps[:, None] * (last - first)[:, None]).reshape(
    -1, 3
  )


def _with_text(picture: np.ndarray, layer: Layer) -> Image.Image:
  height, width, _ = picture.shape
  font = ImageFont.load_default(_TEXT)
  widest = max((font.getlength(text) for text, _ in layer.legend), default=0)
  columns = max(int((width - _MARGIN) // (widest + 3 * _MARGIN + 12)), 1)
  lines = -(-len(layer.legend) // columns)
  top = _TITLE + 2 * _MARGIN
  out = Image.new(
    "RGB", (width, top + height + lines * _LINE + _MARGIN), _PAPER
  )
  draw = ImageDraw.Draw(out)
  title = textwrap.shorten(layer.title, 60)
  draw.text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(_TITLE))
  out.paste(Image.fromarray(picture), (0, top))
  for number, (text, color) in enumerate(layer.legend):
    row, column = divmod(number, columns)
    x = _MARGIN + column * (width - _MARGIN) // columns
    y = top + height + row * _LINE + _MARGIN // 2
    draw.rectangle((x, y + 2, x + 12, y + 14), color)
    draw.text((x + 12 + _MARGIN, y), text, _INK, font)
  return out
