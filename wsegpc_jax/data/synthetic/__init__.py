"""Synthetic rooms: furnished, scanned and photographed from a seed alone."""

from wsegpc_jax.data.synthetic.objects import CLASSES
from wsegpc_jax.data.synthetic.rooms import VERSION, make_room, write_rooms

__all__ = ["CLASSES", "VERSION", "make_room", "write_rooms"]
