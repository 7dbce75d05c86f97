"""Reads the table of contents of a zip archive that nobody vouches for.

Stricter than Python's zipfile: members are stored as they are, each name is
there once, no two members share bytes, and the table has a largest size. So
what is read is never more than the file.
"""

import struct
from typing import BinaryIO

import numpy as np

from wsegpc_jax.interop.pickle_machine import Refused, brief

_MAX_DIRECTORY = 1 << 26  # bytes of the table


def read_bytes(file: BinaryIO, size: int, length: int) -> np.ndarray:
  """The next bytes, uint8 [length]; nothing is allocated in vain."""
  if length > size - file.tell():
    raise EOFError("the file ends too early")
  content = np.empty(length, np.uint8)
  if file.readinto(content) != length:
    raise EOFError("the file ends too early")
  return content


def read_directory(
  file: BinaryIO, size: int
) -> dict[str, tuple[int, int, int]]:
  """The members of a zip archive: (start, length, checksum) by name.

  Args:
    file: any place in it.
    size: its length in bytes.

  Raises:
    Refused: if a member is compressed or encrypted.
    Exception: of several kinds, if the archive is damaged, holds a name twice,
      or has members that share bytes.
  """

  def unpack(layout, start, magic):
    length = struct.calcsize(layout)
    if not 0 <= start <= size - length:
      raise EOFError("the archive ends too early")
    file.seek(start)
    found, *fields = struct.unpack(layout, file.read(length))
    if found != magic:
      raise ValueError(f"no {magic!r} at byte {start}")
    return fields

  *_, count, length, start, comment = unpack("<4s4H2LH", size - 22, b"PK")
  file.seek(max(size - 42, 0))
  if file.read(4) == b"PK":
    _, at, _ = unpack("<4sLQL", size - 42, b"PK")
    *_, count, length, start = unpack("<4sQ2H2L4Q", at, b"PK")
  if comment or length > _MAX_DIRECTORY or start + length > size:
    raise ValueError("a table of contents out of range")
  file.seek(start)
  table = file.read(length)
  members, places = {}, []
  at = 0
  for _ in range(count):
    fields = struct.unpack_from("<4s6H3L5H2L", table, at)
    magic, _, _, flags, method, _, _, crc, packed, length, *more = fields
    name_length, extra_length, comment_length, _, _, _, header = more
    at += 46
    raw = table[at : at + name_length]
    at += name_length
    extra = table[at : at + extra_length]
    at += extra_length + comment_length
    if magic != b"PK" or at > len(table):
      raise ValueError("a damaged table of contents")
    name = raw.decode("utf-8")
    if flags & 1 or method:
      raise Refused(f"its member {brief(name)} is compressed or encrypted")
    length, packed, header = _large(extra, length, packed, header)
    *_, name_length, extra_length = unpack("<4s5H3L2H", header, b"PK")
    begin = header + 30 + name_length + extra_length
    if file.read(name_length) != raw or packed != length:
      raise ValueError(f"two descriptions of {brief(name)} that differ")
    if name in members:
      raise ValueError(f"{brief(name)} twice")
    members[name] = begin, length, crc
    places.append((header, begin + length))
  places = [*sorted(places), (start, size)]
  for (_, end), (begin, _) in zip(places, places[1:], strict=False):
    if end > begin:
      raise ValueError("members that overlap")
  if at != len(table) or not members:
    raise ValueError("a damaged table of contents")
  return members


def _large(extra, *numbers):
  """Replaces the numbers that do not fit 32 bits by those of the extra field."""
  numbers = list(numbers)
  if 0xFFFFFFFF not in numbers:
    return numbers
  at = 0
  while at + 4 <= len(extra):
    kind, length = struct.unpack_from("<2H", extra, at)
    at += 4
    if kind == 1:
      for i, number in enumerate(numbers):
        if number == 0xFFFFFFFF:
          (numbers[i],) = struct.unpack_from("<Q", extra[: at + length], at)
          at += 8
      return numbers
    at += length
  raise ValueError("a size that does not fit")
