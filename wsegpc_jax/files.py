"""Writing files all or nothing."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def write_error(path: str | os.PathLike, error: OSError) -> OSError:
  """The same error, with the file's name and a full disk in plain words."""
  reason = error.strerror or str(error)
  if error.errno == errno.ENOSPC:
    reason = "the disk is full"
  # The error number picks the subclass, such as PermissionError.
  return OSError(error.errno, f"cannot write it: {reason}", os.fspath(path))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
  """A file that appears under its name only once it is whole.

  It is written under a temporary name in the same folder, which is made if
  need be, then renamed; after an error the temporary file is gone and what was
  at `path` still is. Text is UTF-8.

  Raises:
    OSError: it cannot be written, for instance because the disk is full.
  """
  path = Path(path)
  # With the process in it, so that two processes cannot mix what they write.
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  encoding = None if "b" in mode else "utf-8"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, mode, encoding=encoding) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException as error:
    if path.parent.is_dir():
      temporary.unlink(missing_ok=True)
    if isinstance(error, OSError):
      raise write_error(path, error) from error
    raise
