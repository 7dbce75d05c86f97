"""Writing files all or nothing, and by one process at a time."""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
  import fcntl
except ImportError:  # Windows: runs are not kept apart there
  fcntl = None

from wsegpc_jax.types import DataError

_LOCK = ".lock"

# Held where several threads read files of numpy: it parses headers as Python
# literals, which CPython 3.11 fails at now and then in two threads at once
# ("AST constructor recursion depth mismatch", python/cpython#106905).
NUMPY_READING = threading.RLock()


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


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike) -> Iterator[None]:
  """Keeps a folder for this process, which may die at any time.

  The folder is made if need be. The operating system lets go of the lock when
  the process ends, so that nothing is left behind by one that was killed.

  Raises:
    DataError: another process has the folder.
  """
  Path(folder).mkdir(parents=True, exist_ok=True)
  path = Path(folder) / _LOCK
  with open(path, "a+", encoding="utf-8") as file:
    if fcntl is not None:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        raise DataError(
          f"{folder} is in use by another run (process {owner}); wait for it, "
          "or use another working directory"
        ) from None
      except OSError:
        pass  # a file system without locks
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield
