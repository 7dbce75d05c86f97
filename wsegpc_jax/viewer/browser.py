"""Layers in a browser, through viser: served live or written as one file.

Layers, frames and groups of images are nodes of viser's scene tree, so they
can also be switched in a recording, which has no controls of its own.
"""

import contextlib
import dataclasses
import html
import io
import logging
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsegpc_jax.palette import number_colors
from wsegpc_jax.types import DataError
from wsegpc_jax.viewer import render
from wsegpc_jax.viewer.frames import (
  LinkedFrame,
  field_of_view,
  link_overlay,
  region_overlay,
)
from wsegpc_jax.viewer.layers import Layer

# A point's size in spacings: surfaces look closed, edges stay sharp.
_SIZE = 1.0
_OVERLAY_LAYERS = ("superpoint", "truth", "prediction", "pseudo", "normal")
_FRUSTUM_SCALE = 0.15  # metres
_THUMBNAIL = 320  # longer side of the images in frusta, pixels
_PANEL = 280  # pixels across the images beside the controls
_PHOTOS, _NOTHING = "Cameras: photos", "no cameras"


@dataclasses.dataclass(frozen=True)
class Exhibit:
  """What is shown of a scene.

  Attributes:
    name: of the scene.
    coord: float32 [N, 3], metres, z up.
    layers: at least one; the first is shown at first.
    frames: posed images with links; may be empty.
  """

  name: str
  coord: np.ndarray
  layers: Sequence[Layer]
  frames: Sequence[LinkedFrame] = ()


@dataclasses.dataclass(frozen=True)
class Controls:
  """Handles of viser's controls: a layer's title, metres, millimetres."""

  layer: Any
  legend: Any
  size: Any
  cut: Any


def import_viser() -> Any:
  """The viser module.

  Raises:
    ImportError: it is not installed; names the extra.
  """
  try:
    import viser
  except ImportError as error:
    raise ImportError(
      'the browser viewer needs viser: pip install "wsegpc-jax[viz]" (--png'
      " draws a picture without it)"
    ) from error
  return viser


def open_server(exhibit: Exhibit, *, host: str, port: int) -> Any:
  """Serves a scene with its controls; returns the viser server.

  Raises:
    ImportError: viser is not installed.
    DataError: the port is taken, or the address is not this machine's.
  """
  import_viser()
  # viser would take another port without a word, or wait for ever.
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    socket.create_server((host, port), family=family).close()
  except OSError as error:
    raise DataError(
      f"--host={host} --port={port}: cannot be served on, expected an address"
      f" of this machine and a free port ({error})"
    ) from error
  server = _start(host, port)
  layers, images = _add_scene(server, exhibit)
  _add_controls(server, exhibit, layers, images)
  return server


def record(exhibit: Exhibit) -> str:
  """One HTML page that shows the scene offline, without a server.

  Raises:
    ImportError: viser is not installed.
  """
  server = _start("127.0.0.1", 8080)
  try:
    _add_scene(server, exhibit)
    page = server.get_scene_serializer().as_html()
  finally:
    _stop(server)
  end = page.rindex("</body>")
  return page[:end] + _legend_overlay(exhibit) + page[end:]


def legend_html(layer: Layer) -> str:
  """The legend as HTML: a coloured square and a text a line."""
  lines = [
    f'<div style="display:flex;align-items:center;gap:.5em">'
    f'<span style="width:.9em;height:.9em;flex:none;border-radius:2px;'
    f'background:rgb{color}"></span><span>{html.escape(text)}</span></div>'
    for text, color in layer.legend
  ]
  return f'<div style="padding:0 .7em;font-size:13px">{"".join(lines)}</div>'


def _start(host, port):
  viser = import_viser()
  # A browser opens connections to have them ready and drops them again, which
  # would be logged with a traceback.
  logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
  # It prints an address, which a recording does not have.
  with contextlib.redirect_stdout(io.StringIO()):
    server = viser.ViserServer(host=host, port=port, verbose=False)
  server.scene.set_up_direction("+z")
  return server


def _stop(server):
  with contextlib.redirect_stdout(io.StringIO()):
    server.stop()


def _add_scene(server, exhibit):
  """Adds all nodes; returns those of the layers and of the groups of images."""
  coord = exhibit.coord
  eye, target, degrees = render.room_view(coord)
  server.initial_camera.position = eye
  server.initial_camera.look_at = target
  server.initial_camera.fov = np.radians(degrees)
  size = _SIZE * render.point_spacing(coord)
  layers = {}
  for number, layer in enumerate(exhibit.layers):
    layers[layer.title] = server.scene.add_point_cloud(
      f"/{_node(layer.title)}",
      coord,
      layer.color,
      point_size=size,
      point_shape="circle",
      point_shading="flat",
      precision="float32",
      visible=number == 0,
    )
  images = {}
  for title, pictures in _image_groups(exhibit).items():
    images[title] = server.scene.add_frame(
      f"/{_node(title)}", show_axes=False, visible=not images
    )
    # Cameras have the colours of the layer that shows which frame sees what.
    colors = number_colors(np.arange(len(pictures))).tolist()
    for linked, picture, color in zip(
      exhibit.frames, pictures, colors, strict=True
    ):
      _add_frustum(server, title, linked.frame, picture, color)
  return layers, images


def _add_frustum(server, group, frame, picture, color):
  viser = import_viser()
  size = frame.depth.shape
  fov, aspect = field_of_view(frame.intrinsics, size)
  wxyz = viser.transforms.SO3.from_matrix(frame.pose[:3, :3]).wxyz
  step = -(-max(size) // _THUMBNAIL)
  handle = server.scene.add_camera_frustum(
    f"/{_node(group)}/{_node(frame.name)}",
    fov,
    aspect,
    scale=_FRUSTUM_SCALE,
    thickness=0.005,
    color=tuple(color),
    image=picture[::step, ::step],
    wxyz=wxyz,
    position=frame.pose[:3, 3],
  )

  @handle.on_click
  def _(event):
    """A click on a frustum looks through that camera."""
    camera = event.client.camera
    with event.client.atomic():
      camera.position = frame.pose[:3, 3]
      camera.look_at = frame.pose[:3, 3] + frame.pose[:3, 2]
      camera.fov = fov


def _image_groups(exhibit) -> dict[str, list[np.ndarray]]:
  """Pictures of all frames, by what they show."""
  frames = exhibit.frames
  if not frames:
    return {}
  groups = {_PHOTOS: [linked.frame.color for linked in frames]}
  layer = _overlay_layer(exhibit.layers)
  groups[f"Cameras: links ({layer.title})"] = [
    link_overlay(linked, layer.color) for linked in frames
  ]
  if all(linked.frame.region is not None for linked in frames):
    groups["Cameras: regions"] = [region_overlay(f.frame) for f in frames]
  return groups


def _overlay_layer(layers) -> Layer:
  by_name = {layer.name: layer for layer in layers}
  names = [name for name in _OVERLAY_LAYERS if name in by_name]
  return by_name[names[0]] if names else layers[0]


def _node(title: str) -> str:
  return title.replace("/", "-")  # a slash would begin another node


def _add_controls(server, exhibit, layers, images):
  gui = server.gui
  gui.set_panel_label(exhibit.name)
  gui.configure_theme(show_logo=False, show_share_button=False)
  by_title = {layer.title: layer for layer in exhibit.layers}
  chosen = gui.add_dropdown("Layer", tuple(by_title))
  legend = gui.add_html(legend_html(exhibit.layers[0]))
  first = next(iter(layers.values()))
  size = gui.add_slider(
    "Point size (mm)",
    min=1,
    max=100,
    step=1,
    initial_value=int(np.clip(round(1000 * first.point_size), 1, 100)),
  )
  top = exhibit.coord[:, 2].astype(np.float64)
  cut = gui.add_slider(
    "Hide above (m)",
    min=round(float(top.min()), 2),
    max=round(float(top.max()) + 0.01, 2),
    step=0.01,
    initial_value=round(float(top.max()) + 0.01, 2),
  )

  @chosen.on_update
  def _(_):
    for title, node in layers.items():
      node.visible = title == chosen.value
    legend.content = legend_html(by_title[chosen.value])

  @size.on_update
  def _(_):
    for node in layers.values():
      node.point_size = size.value / 1000

  @cut.on_update
  def _(_):
    kept = exhibit.coord[:, 2] <= cut.value
    for title, node in layers.items():
      with server.atomic():
        node.points = exhibit.coord[kept]
        node.colors = by_title[title].color[kept]

  if images:
    _add_image_controls(server, exhibit, images)
  return Controls(chosen, legend, size, cut)


def _add_image_controls(server, exhibit, images):
  gui = server.gui
  groups = _image_groups(exhibit)
  with gui.add_folder("Posed images"):
    shown = gui.add_dropdown(
      "In the cameras", (_NOTHING, *groups), initial_value=_PHOTOS
    )
    names = [linked.frame.name for linked in exhibit.frames]
    name = gui.add_dropdown("Shown below", names)
    panel = gui.add_image(_enlarged(groups[_PHOTOS][0]))

  def update(_):
    for title, node in images.items():
      node.visible = title == shown.value
    group = shown.value if shown.value in groups else _PHOTOS
    panel.image = _enlarged(groups[group][names.index(name.value)])

  shown.on_update(update)
  name.on_update(update)


def _enlarged(image):
  """Small images fill the panel, pixel by pixel."""
  times = max(_PANEL // image.shape[1], 1)
  return image.repeat(times, axis=0).repeat(times, axis=1)


def _legend_overlay(exhibit) -> str:
  layers = [layer for layer in exhibit.layers if layer.legend]
  parts = [
    f"<details{' open' if number == 0 else ''}>"
    f"<summary>{html.escape(layer.title)}</summary>{legend_html(layer)}"
    "</details>"
    for number, layer in enumerate(layers)
  ]
  return (
    f"<style>{_OVERLAY_STYLE}</style><script>{_OPEN_TREE}</script>"
    f'<div id="legend"><b>{html.escape(exhibit.name)}</b>{"".join(parts)}</div>'
  )


_OVERLAY_STYLE = """
#legend { position: fixed; left: 1em; bottom: 1em; z-index: 2; overflow: auto;
  max-height: 60vh; max-width: 45vw; padding: .6em .8em; border-radius: 4px;
  background: rgba(255, 255, 255, .9); color: #222; font: 13px sans-serif;
  box-shadow: 0 0 1em rgba(0, 0, 0, .15) }
#legend details { margin-top: .4em }
#legend summary { cursor: pointer }
@media (max-width: 700px) { #legend { max-height: 25vh } }
"""
# The layers are switched in the scene tree, which viser hides at first: where
# there is room for it, open it as soon as its button is there.
_OPEN_TREE = """
const opening = setInterval(() => {
  const button = document.querySelector('[aria-label="Show scene tree"]');
  if (button && innerWidth > 700) button.click();
  if (button) clearInterval(opening);
}, 200);
"""
