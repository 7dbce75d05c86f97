"""Files appear whole or not at all."""

import errno

import pytest

from wsegpc_jax.files import atomic_write


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
