"""Box rooms written as ScanNet: as it is released, and as the authors have it.

Both writers are independent of the readers: every file is put together here,
field by field. They return what reading must give: scenes and frames whose
walls follow x and y, with ScanNet's classes. On disk everything is turned by
`alignment(name)` the other way round.

  originals = write_raw(tmp_path / "raw", scenes=("scene0000_00",))
  originals = write_processed(tmp_path / "processed", scenes=(...))

Scene k of a list is room k of one seed, so equal lists give equal rooms. Its
frames are 0, 20, 40, ...; what lies between is there to be skipped.
"""

import dataclasses
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import plyfile
from PIL import Image
from scipy.spatial import Delaunay

from wsegpc_jax.data import box_rooms
from wsegpc_jax.interop import torch_pickle
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, Frame, Scene

SEED = 5
EVERY = 20
SIZE = (48, 64)  # of the frames that come out
# (class of box_rooms, raw category, raw id, NYU40 id, class of ScanNet).
CATEGORIES = (
  ("wall", "wall", 1, 1, 0),
  ("floor", "floor", 3, 2, 1),
  ("table", "coffee table", 41, 7, 6),
  ("chair", "office chair", 1184, 5, 4),
  ("bed", "bed", 11, 4, 3),
  ("cabinet", "kitchen cabinet", 29, 3, 2),
  ("box", "box", 26, 29, IGNORE_LABEL),
)
_COLUMNS = "id raw_category category count nyu40id eigen13id nyuClass".split()
_FOCAL = 577.870605  # for 480 x 640 pixels, all scenes


@dataclasses.dataclass(frozen=True)
class Original:
  """What was written: points and frames after alignment.

  Attributes:
    scene: labels are those of ScanNet; superpoints those of the room.
    frames: of `SIZE`, with labels and regions.
    nyu40: int [N], ids of the points; 0 = not annotated.
    raw_id: int [48, 64] of each frame.
  """

  scene: Scene
  frames: tuple[Frame, ...]
  nyu40: np.ndarray
  raw_id: tuple[np.ndarray, ...]


def alignment(name: str) -> np.ndarray:
  """Raw to aligned: a turn about z and a shift, other ones for each scene."""
  angle = 0.3 + 0.1 * (sum(map(ord, name)) % 7)
  c, s = np.cos(angle), np.sin(angle)
  matrix = np.array(
    [[c, -s, 0, -1.7], [s, c, 0, 0.6], [0, 0, 1, -0.05], [0, 0, 0, 1]]
  )
  return np.round(matrix, 6)  # as it will be written


def make_original(name: str, index: int, *, views: int = 4) -> Original:
  """Room `index` with the classes of ScanNet; one object is not annotated."""
  room, seen = box_rooms.make_room(
    SEED, index, views=views, points_per_square_metre=250.0
  )
  layout = box_rooms.make_layout(np.random.default_rng([SEED, index]))
  raw_ids, nyu40, of_class = np.array([c[2:] for c in CATEGORIES]).T
  # Someone forgot the last face of the room's furniture.
  forgotten = room.superpoint == room.superpoint.max()
  label = np.where(forgotten, IGNORE_LABEL, of_class[room.label])
  frames, raw_id = [], []
  for k, frame in enumerate(seen):
    depth, box, face, color = render(layout, frame.pose, camera(SIZE), SIZE)
    hit = box >= 0
    of_pixel = layout.label[box]
    region = np.where(hit, layout.region[box, face], NO_REGION)
    frames.append(
      Frame(
        name=str(EVERY * k),
        color=color,
        depth=depth.astype(np.float32) / np.float32(1000),
        pose=frame.pose,
        intrinsics=camera(SIZE),
        region=region.astype(np.int32),
        label=np.where(hit, of_class[of_pixel], IGNORE_LABEL).astype(np.int32),
      )
    )
    raw_id.append(np.where(hit, raw_ids[of_pixel], 0))
  scene = dataclasses.replace(
    room,
    name=name,
    label=label.astype(np.int32),
    tags=np.isin(np.arange(20), label),
    frames=tuple(frame.name for frame in frames),
  )
  ids = np.where(forgotten, 0, nyu40[room.label])
  return Original(scene, tuple(frames), ids, tuple(raw_id))


def camera(size: tuple[int, int], *, focal: float = _FOCAL) -> np.ndarray:
  """Intrinsics (fx, fy, cx, cy) of ScanNet's camera at a size (H, W)."""
  h, w = size
  cx, cy = 319.5 * (w - 1) / 639, 239.5 * (h - 1) / 479
  return np.array([focal * w / 640, focal * h / 480, cx, cy])


def render(layout, pose, intrinsics, size):
  """Depth in millimetres, box, face and colour of each pixel [H, W]."""
  fx, fy, cx, cy = intrinsics
  rows, columns = np.mgrid[: size[0], : size[1]]
  rays = np.stack(
    [(columns - cx) / fx, (rows - cy) / fy, np.ones(size)], axis=-1
  )
  rays = rays.reshape(-1, 3) @ pose[:3, :3].T
  depth, box, face = box_rooms.cast_rays(layout.boxes, pose[:3, 3], rays)
  color = np.where(box[:, None] < 0, 30, np.rint(layout.color[box, face]))
  depth = np.where(box < 0, 0, np.rint(1000 * depth))
  return (
    depth.reshape(size).astype(np.uint16),
    box.reshape(size),
    face.reshape(size),
    color.reshape(*size, 3).astype(np.uint8),
  )


def write_raw(
  folder: Path,
  *,
  scenes: tuple[str, ...],
  labels: tuple[str, ...] = ("ply", "aggregation"),
  codec: str = "png",
  frames: str = "sens",
  labels_2d: bool = True,
  depth_focal: float = _FOCAL,
) -> dict[str, Original]:
  """Writes `<folder>/scans/<scene>/` and the label map, `<folder>/labels.tsv`.

  Args:
    folder: made if needed.
    scenes: their names.
    labels: which of the two sources of labels to write; none for test scans.
    codec: of colour images in .sens files, "png", "jpeg" or "raw".
    frames: "sens", or "exported" for color/, depth/ and pose/.
    labels_2d: whether to write <scene>_2d-label-filt.zip.
    depth_focal: focal length of the depth camera, for 640 pixels.

  Returns:
    What was written, by scene.
  """
  originals = {}
  for index, name in enumerate(scenes):
    original = originals[name] = make_original(name, index)
    scan = folder / "scans" / name
    scan.mkdir(parents=True)
    _write_scan(scan, original, labels)
    layout = box_rooms.make_layout(np.random.default_rng([SEED, index]))
    shots = _shoot(layout, original, depth_focal)
    if frames == "sens":
      write_sens(scan / f"{name}.sens", shots, codec, depth_focal=depth_focal)
    else:
      _write_exported(scan, shots)
    if labels_2d:
      with zipfile.ZipFile(scan / f"{name}_2d-label-filt.zip", "w") as file:
        for frame, raw_id in zip(original.frames, original.raw_id, strict=True):
          large = np.kron(raw_id, np.ones((2, 2))).astype(np.uint16)
          file.writestr(f"label-filt/{frame.name}.png", encode(large))
  write_label_map(folder / "labels.tsv")
  return originals


def write_label_map(path: Path) -> None:
  """The columns of the official map, those that matter filled in."""
  rows = [[raw_id, raw, name, 9, nyu, 0, name] for name, raw, raw_id, nyu, _ in
          CATEGORIES]  # fmt: skip
  rows.append([999, "never seen", "object", 1, 40, 7, "otherprop"])
  lines = ["\t".join(map(str, row)) for row in [_COLUMNS, *rows]]
  path.write_text("\n".join(lines) + "\n")


def triangulate(scene: Scene) -> np.ndarray:
  """Faces [F, 3] within each face of a box, counterclockwise from outside."""
  faces = []
  for region in np.unique(scene.superpoint):
    members = np.flatnonzero(scene.superpoint == region)
    if len(members) < 4:
      continue
    axis = np.abs(scene.normal[members[0]]).argmax()
    flat = np.delete(scene.coord[members], axis, axis=1).astype(np.float64)
    triangle = members[Delaunay(flat).simplices]
    corner = scene.coord[triangle].astype(np.float64)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    inward = np.einsum("ij,ij->i", normal, scene.normal[triangle[:, 0]]) < 0
    triangle[inward] = triangle[inward][:, ::-1]
    faces.append(triangle)
  return np.concatenate(faces)


def _write_scan(scan: Path, original: Original, labels) -> None:
  name, scene = scan.name, original.scene
  align = alignment(name)
  camera_lines = "".join(
    f"{key} = {value:.6f}\n"
    for key, value in zip(
      ("fx_color", "fy_color", "mx_color", "my_color"),
      camera((2 * SIZE[0], 2 * SIZE[1])),
      strict=True,
    )
  )
  numbers = " ".join(f"{x:.6f}" for x in align.ravel())
  aligned = f"axisAlignment = {numbers} \n" if labels else ""
  (scan / f"{name}.txt").write_text(
    f"{aligned}colorHeight = {2 * SIZE[0]}\ncolorWidth = {2 * SIZE[1]}\n"
    f"{camera_lines}numDepthFrames = 61\nsceneType = Bedroom / Hotel\n"
  )
  coord = to_raw(scene.coord, align)
  faces = triangulate(scene)
  _write_ply(scan / f"{name}_vh_clean_2.ply", coord, scene.color, faces)
  if "ply" in labels:
    # Coloured by label in the release.
    painted = np.stack([original.nyu40 * 5] * 3, axis=1)
    path = scan / f"{name}_vh_clean_2.labels.ply"
    _write_ply(path, coord, painted, faces, original.nyu40)
  if "aggregation" in labels:
    # Two segments to a face, with gaps in their numbers.
    half = scene.coord[:, 2] > np.median(scene.coord[:, 2])
    segment = 7 * scene.superpoint + 3 * half + 2
    groups = []
    for region in np.unique(scene.superpoint[original.nyu40 > 0]):
      inside = scene.superpoint == region
      (nyu40,) = np.unique(original.nyu40[inside])
      raw = next(c[1] for c in CATEGORIES if c[3] == nyu40)
      members = [int(s) for s in np.unique(segment[inside])]
      number = len(groups)
      groups.append(
        {"id": number, "objectId": number, "segments": members, "label": raw}
      )
    (scan / f"{name}_vh_clean_2.0.010000.segs.json").write_text(
      json.dumps(
        {
          "params": {"kThresh": "0.0001", "segMinVerts": "20"},
          "sceneId": name,
          "segIndices": segment.tolist(),
        }
      )
    )
    (scan / f"{name}.aggregation.json").write_text(
      json.dumps({"sceneId": f"scannet.{name}", "segGroups": groups})
    )


def to_raw(coord: np.ndarray, align: np.ndarray) -> np.ndarray:
  """Aligned points in the world of the release, float32 [N, 3]."""
  back = np.linalg.inv(align)
  return (coord @ back[:3, :3].T + back[:3, 3]).astype(np.float32)


def _write_ply(path: Path, coord, color, faces, label=None) -> None:
  fields = [(axis, "<f4") for axis in "xyz"]
  fields += [(c, "u1") for c in ("red", "green", "blue", "alpha")]
  if label is not None:
    fields.append(("label", "<u2"))
  vertex = np.zeros(len(coord), fields)
  for k, axis in enumerate("xyz"):
    vertex[axis] = coord[:, k]
    vertex[("red", "green", "blue")[k]] = color[:, k]
  vertex["alpha"] = 255
  if label is not None:
    vertex["label"] = label
  face = np.empty(len(faces), [("vertex_indices", "<i4", (3,))])
  face["vertex_indices"] = faces
  elements = [
    plyfile.PlyElement.describe(vertex, "vertex"),
    plyfile.PlyElement.describe(face, "face"),
  ]
  plyfile.PlyData(elements, byte_order="<").write(str(path))


def _shoot(layout, original, depth_focal):
  """(index, raw pose, colour [96, 128, 3], depth [48, 64]) of each frame."""
  back = np.linalg.inv(alignment(original.scene.name))
  size = (2 * SIZE[0], 2 * SIZE[1])
  for frame in original.frames:
    color = render(layout, frame.pose, camera(size), size)[3]
    depth_camera = camera(SIZE, focal=depth_focal)
    depth = render(layout, frame.pose, depth_camera, SIZE)[0]
    yield int(frame.name), back @ frame.pose, color, depth


def write_sens(
  path: Path,
  shots,
  codec: str = "png",
  *,
  depth_codec: str = "zlib_ushort",
  depth_focal: float = _FOCAL,
) -> None:
  """Writes a .sens file of version 4, with frames between that are no images.

  After the last shot comes a frame whose tracking was lost, where one would be
  read.

  Args:
    path: the file.
    shots: (index, pose [4, 4], colour [96, 128, 3], depth [48, 64]), ascending.
    codec: "png", "jpeg" or "raw".
    depth_codec: "zlib_ushort" or "raw_ushort".
    depth_focal: focal length of the depth camera, for 640 pixels.
  """
  shots = {index: rest for index, *rest in shots}
  last = max(shots) + EVERY
  lost = np.full((4, 4), -np.inf)
  size = (2 * SIZE[0], 2 * SIZE[1])
  with open(path, "wb") as file:
    file.write(struct.pack("<I", 4))
    file.write(struct.pack("<Q", 9) + b"miniature")
    for intrinsics in (camera(size), camera(SIZE, focal=depth_focal)):
      fx, fy, cx, cy = intrinsics
      matrix = [fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0, 0, 0, 0, 1]
      file.write(struct.pack("<16f", *matrix))
      file.write(struct.pack("<16f", *np.eye(4).ravel()))
    file.write(struct.pack("<i", {"raw": 0, "png": 1, "jpeg": 2}[codec]))
    file.write(
      struct.pack("<i", {"raw_ushort": 0, "zlib_ushort": 1}[depth_codec])
    )
    file.write(struct.pack("<II", size[1], size[0]))
    file.write(struct.pack("<II", SIZE[1], SIZE[0]))
    file.write(struct.pack("<f", 1000.0))
    file.write(struct.pack("<Q", last + 1))
    for index in range(last + 1):
      pose, color, depth = lost, b"no image", b"skip me"
      if index in shots:
        pose, color, depth = shots[index]
        color = color.tobytes() if codec == "raw" else encode(color, codec)
        depth = depth.astype("<u2").tobytes()
        if depth_codec == "zlib_ushort":
          depth = zlib.compress(depth)
      file.write(struct.pack("<16f", *np.asarray(pose).ravel()))
      file.write(struct.pack("<QQ", 33_000 * index, 33_000 * index + 7))
      file.write(struct.pack("<QQ", len(color), len(depth)))
      file.write(color)
      file.write(depth)
    file.write(struct.pack("<Q", 0))  # no measurements of motion


def encode(image: np.ndarray, codec: str = "png") -> bytes:
  buffer = io.BytesIO()
  quality = {"quality": 95, "subsampling": 0} if codec == "jpeg" else {}
  Image.fromarray(image).save(buffer, codec, **quality)
  return buffer.getvalue()


def _write_exported(scan: Path, shots) -> None:
  for kind in ("color", "depth", "pose"):
    (scan / kind).mkdir()
  for index, pose, color, depth in shots:
    # Its successor is there to be skipped.
    for number in (index, index + 1):
      (scan / "color" / f"{number}.jpg").write_bytes(encode(color, "jpeg"))
      (scan / "depth" / f"{number}.png").write_bytes(encode(depth))
      np.savetxt(scan / "pose" / f"{number}.txt", pose)


def write_processed(
  folder: Path,
  *,
  scenes: tuple[str, ...],
  val: tuple[str, ...] = (),
  superpoints: bool = True,
  regions: bool = True,
) -> dict[str, Original]:
  """Writes `<folder>/scannet_3d/` and `<folder>/scannet_2d/`.

  Args:
    folder: made if needed.
    scenes: names of the scenes of the split "train"; room k is scene k.
    val: names of those of the split "val"; rooms go on from there.
    superpoints: whether to write initial_superpoints_wypr/.
    regions: whether to write label_sp_sparse/.

  Returns:
    What was written, by scene. Colours of frames have been through JPEG.
  """
  originals = {}
  for index, name in enumerate((*scenes, *val)):
    original = originals[name] = make_original(name, index)
    scene, align = original.scene, alignment(name)
    points = folder / "scannet_3d" / ("val" if name in val else "train")
    points.mkdir(parents=True, exist_ok=True)
    arrays = {
      "coord": to_raw(scene.coord, align),
      "color": scene.color,
      # Turned back, not moved.
      "normal": (scene.normal @ align[:3, :3]).astype(np.float32),
      "semantic_gt20": scene.label.astype(np.int64),
    }
    torch_pickle.save(points / f"{name}.pth", arrays)
    if superpoints:
      place = folder / "scannet_3d" / "initial_superpoints_wypr"
      place.mkdir(exist_ok=True)
      np.savez(place / f"{name}_superpoint.npz", a=scene.superpoint)
    _write_processed_frames(folder / "scannet_2d" / name, original, regions)
  return originals


def _write_processed_frames(folder: Path, original, regions) -> None:
  align = alignment(folder.name)
  kinds = ["color", "depth", "label", "pose"]
  kinds += ["label_sp_sparse"] * regions
  for kind in kinds:
    (folder / kind).mkdir(parents=True)
  numbers = " ".join(f"{x:.6f}" for x in align.ravel())
  (folder / f"{folder.name}.txt").write_text(
    f"axisAlignment = {numbers} \nsceneType = Misc.\n"
  )
  nyu40_of = np.zeros(256, np.uint8)
  nyu40_of[[c[4] for c in CATEGORIES[:-1]]] = [c[3] for c in CATEGORIES[:-1]]
  nyu40_of[IGNORE_LABEL] = 40
  for frame in original.frames:
    pose = np.linalg.inv(align) @ frame.pose
    depth = np.rint(1000 * frame.depth.astype(np.float64)).astype(np.uint16)
    # The one after is there to be skipped, and the last has lost its pose.
    for number, matrix in (
      (int(frame.name), pose),
      (int(frame.name) + 1, pose),
      (int(original.frames[-1].name) + EVERY, np.full((4, 4), -np.inf)),
    ):
      jpeg = encode(frame.color, "jpeg")
      (folder / "color" / f"{number}.jpg").write_bytes(jpeg)
      (folder / "depth" / f"{number}.png").write_bytes(encode(depth))
      label = encode(nyu40_of[frame.label])
      (folder / "label" / f"{number}.png").write_bytes(label)
      rows = [" ".join(f"{x:.9f}" for x in row) for row in matrix]
      (folder / "pose" / f"{number}.txt").write_text("\n".join(rows) + "\n")
      if regions:
        path = folder / "label_sp_sparse" / f"{number}.npz"
        np.savez(path, a=frame.region.ravel())
