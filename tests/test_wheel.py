"""The wheel holds every package and works where the checkout is not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def test_the_wheel_is_complete(tmp_path):
  build = "import setuptools.build_meta as b; print(b.build_wheel({!r}))"
  # Setuptools leaves build/ and *.egg-info beside the sources: on a copy.
  copy = tmp_path / "sources"
  copy.mkdir()
  for name in (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "wsegpc_jax",
    "kernels",
  ):
    os.symlink(_ROOT / name, copy / name)
  done = subprocess.run(
    [sys.executable, "-c", build.format(str(tmp_path))],
    cwd=copy,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  wheel = next(tmp_path.glob("*.whl"))
  target = tmp_path / "site"
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(target)
  measured = "wsegpc_jax/kernels/gather_conv/tiles.json"
  stored = _ROOT / "kernels/gather_conv/tiles.json"
  assert (target / measured).read_bytes() == stored.read_bytes()
  packaged = {str(p.relative_to(target)) for p in target.rglob("*.py")}
  sources = {
    str(p.relative_to(_ROOT)) for p in (_ROOT / "wsegpc_jax").rglob("*.py")
  } | {
    "wsegpc_jax/" + str(p.relative_to(_ROOT))
    for p in (_ROOT / "kernels").rglob("*.py")
  }
  assert packaged == sources

  # Imported from there, without the heavy and the optional parts.
  program = (
    "import sys, wsegpc_jax.kernels.gather_conv, wsegpc_jax.sparse.conv as c;"
    "assert c.__file__.startswith(sys.argv[1]), c.__file__;"
    "heavy = {'torch', 'tensorflow', 'open3d', 'sklearn', 'skimage', 'grain',"
    " 'ml_collections', 'plyfile', 'tensorboardX'};"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, str(target)],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(target)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
