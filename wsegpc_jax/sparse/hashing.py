"""An exact hash table of voxel coordinates, built and searched under jit.

Open addressing with linear probing. A slot holds the row of a voxel, and a
probe compares all four coordinates, so two voxels that share a hash are never
taken for one another. Shapes are static and there is no 64-bit integer.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt32


@flax.struct.dataclass
class HashTable:
  """Rows of `coords` by coordinate; N rows, T slots (a power of two >= 2 N).

  Attributes:
    slots: int32 [T], a row of coords, or N for an empty slot.
    coords: int32 [N, 4], (batch, x, y, z).
  """

  slots: Int32[Array, " t"]
  coords: Int32[Array, "n 4"]


def _hash(coords: Int32[Array, "q 4"]) -> UInt32[Array, " q"]:
  c = coords.astype(jnp.uint32)
  h = jnp.zeros(coords.shape[0], jnp.uint32)
  for i, odd in enumerate((0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)):
    h = (h ^ c[:, i]) * jnp.uint32(odd)
    h = h ^ (h >> 15)
  h = h * jnp.uint32(0x2C1B3C6D)
  return h ^ (h >> 13)


def build_table(
  coords: Int32[Array, "n 4"], count: Int32[Array, ""]
) -> HashTable:
  """Inserts rows 0 .. count - 1; of equal coordinates the first row stays."""
  n = coords.shape[0]
  size = 1 << max(2 * n - 1, 1).bit_length()
  start = (_hash(coords) & jnp.uint32(size - 1)).astype(jnp.int32)
  rows = jnp.arange(n, dtype=jnp.int32)
  padded = jnp.concatenate([coords, jnp.full((1, 4), -1, coords.dtype)])

  def insert(state):
    slots, position, pending = state
    # The lowest row that asks for a free slot gets it, whatever the order in
    # which the scatter runs.
    free = slots[position] == n
    ask = jnp.where(pending & free, position, size)
    slots = slots.at[ask].min(rows, mode="drop")
    holder = slots[position]
    placed = (padded[holder] == coords).all(1)  # itself, or an equal voxel
    pending = pending & ~placed
    return slots, jnp.where(pending, (position + 1) % size, position), pending

  slots = jnp.full(size, n, jnp.int32)
  slots, _, _ = jax.lax.while_loop(
    lambda state: state[2].any(), insert, (slots, start, rows < count)
  )
  return HashTable(slots, coords)


def find_rows(
  table: HashTable, queries: Int32[Array, "q 4"]
) -> Int32[Array, " q"]:
  """Rows of the queried coordinates; N (the number of rows) where absent."""
  n, size = table.coords.shape[0], table.slots.shape[0]
  padded = jnp.concatenate([table.coords, jnp.full((1, 4), -1, jnp.int32)])
  position = (_hash(queries) & jnp.uint32(size - 1)).astype(jnp.int32)

  def probe(state):
    position, found, active = state
    row = table.slots[position]
    hit = (padded[row] == queries).all(1) & (row < n)
    found = jnp.where(active & hit, row, found)
    active = active & ~hit & (row < n)
    return jnp.where(active, (position + 1) % size, position), found, active

  missing = jnp.full(queries.shape[0], n, jnp.int32)
  active = jnp.ones(queries.shape[0], bool)
  _, found, _ = jax.lax.while_loop(
    lambda state: state[2].any(), probe, (position, missing, active)
  )
  return found
