"""A ladder without networks: rooms of boxes, and programs that only pretend."""

import hashlib
import json
from pathlib import Path

import numpy as np

from wsegpc_jax import inputs, writers
from wsegpc_jax.data import box_rooms
from wsegpc_jax.ladder import rows, run, scoring

CONFIGS = Path(__file__).parents[1] / "configs"


def write_rooms(root):
  """Two rooms to train on and one held out."""
  return box_rooms.write_rooms(
    root, train=2, val=1, seed=5, image_size=(6, 8), views=1,
    points_per_square_metre=60.0,
  )  # fmt: skip


def made_up_summary(classes, *seed) -> dict:
  text = json.dumps([str(s) for s in seed]).encode()
  number = int.from_bytes(hashlib.sha256(text).digest()[:8])
  iou = np.random.default_rng(number).uniform(0.1, 0.9, len(classes))
  objects = scoring.object_classes(classes)
  return {
    "miou": float(iou.mean()),
    "miou_objects": float(iou[objects].mean()),
    "iou": dict(zip(classes, iou.tolist(), strict=True)),
  }


class Pretend:
  """Programs that note what they are asked, and can be stopped anywhere.

  Attributes:
    calls: (program, seed, row) in order.
    stop_at: number of the call that is interrupted; None = none is.
  """

  def __init__(self, stop_at=None):
    self.calls, self.stop_at = [], stop_at

  def programs(self) -> run.Programs:
    return run.Programs(
      self._train, self._score, self._pretrain, forget=lambda: None
    )

  def _note(self, program, config, workdir):
    self.calls.append((program, config.seed, Path(workdir).name))
    if len(self.calls) - 1 == self.stop_at:
      raise KeyboardInterrupt

  def _train(self, config, workdir):
    # As the trainer, it leaves something before it can be stopped.
    writers.write_json(
      Path(workdir) / "config.json", json.loads(config.to_json())
    )
    self._note("train", config, workdir)

  def _score(self, config, workdir):
    self._note("score", config, workdir)
    classes = inputs.open_data(config).classes
    weak = config.method == "wsegpc"
    return {
      key: made_up_summary(classes, config.seed, Path(workdir).name, key)
      if weak or key != "pseudo_label_miou"
      else None
      for key in scoring.PROTOCOLS
    }

  def _pretrain(self, config, say):
    pass


def make_ladder(workdir, root, pretend, **overrides) -> run.Ladder:
  return run.Ladder(
    workdir=Path(workdir),
    load=rows.config_loader(CONFIGS, "smoke"),
    overrides={**rows.prepared_rooms(str(root)), **overrides},
    programs=pretend.programs(),
    say=lambda line: None,
  )
