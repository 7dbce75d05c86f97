"""Files appear whole or not at all."""

import errno
import subprocess
import sys

import pytest

from wsegpc_jax.files import atomic_write, exclusive
from wsegpc_jax.types import DataError


def test_what_was_there_survives_an_error(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("before")
  with pytest.raises(RuntimeError), atomic_write(path, "w") as file:
    file.write("half")
    raise RuntimeError
  assert path.read_text() == "before"
  assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_named(tmp_path):
  path = tmp_path / "a.bin"
  with pytest.raises(OSError, match="the disk is full.*a.bin"):
    with atomic_write(path) as file:
      file.write(b"x")
      raise OSError(errno.ENOSPC, "No space left on device")
  assert not list(tmp_path.iterdir())


def test_folders_are_made_and_names_kept(tmp_path):
  path = tmp_path / "new" / "a.txt"
  with atomic_write(path, "w") as file:
    file.write("ä")
  assert path.read_bytes() == "ä".encode()


_HOLD = """
import sys
from wsegpc_jax.files import exclusive
with exclusive(sys.argv[1]):
  print("has it", flush=True)
  sys.stdin.read()
"""


def test_a_folder_belongs_to_one_process_until_it_dies(tmp_path):
  folder = tmp_path / "run"
  holder = subprocess.Popen(
    [sys.executable, "-c", _HOLD, str(folder)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with holder:
    assert holder.stdout.readline() == "has it\n"
    with pytest.raises(DataError, match=f"in use.*process {holder.pid}"):
      with exclusive(folder):
        pass
    holder.kill()  # as hard as it gets
    holder.wait()
  with exclusive(folder):
    pass
  with exclusive(folder):  # and given back
    pass
