"""A fused mixture of experts in Triton, written for this bench: a row tile of one expert's tokens a program, gate and up in
one kernel with the activation, down in another one with the routing's weights. Rows are gathered as they are read, and how
many tiles there are is known on the device only.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from peers import Sorted


@dataclass(frozen=True)
class Tile:
    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


def tiles_for(average):
    """Candidates for experts of so many rows, to be timed against each other."""
    if average <= 24:
        return [Tile(16, 64, 64, 4, 4), Tile(16, 64, 128, 4, 3), Tile(16, 128, 64, 4, 4), Tile(16, 32, 128, 4, 4)]
    if average <= 96:
        return [Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(64, 128, 64, 8, 4), Tile(32, 64, 64, 4, 4)]
    return [Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(128, 64, 64, 4, 4), Tile(64, 128, 64, 8, 4)]


@triton.jit
def _tile_of(column_tiles, tiles, GROUP: tl.constexpr):
    """Tiles of rows in groups, so that programs which run together share weights and rows in L2."""
    program = tl.program_id(0)
    in_group = GROUP * column_tiles
    first = program // in_group * GROUP
    size = tl.minimum(tiles - first, GROUP)
    return first + program % in_group % size, program % in_group // size


@triton.jit
def _rows_of(tile, expert, tile_begin, ends, order, ROWS: tl.constexpr):
    """The rows of a tile, which of them its expert has, and their (token, expert) slots."""
    rows = tl.load(tile_begin + tile) + tl.arange(0, ROWS)
    has_row = rows < tl.load(ends + expert)
    return rows, has_row, tl.load(order + rows, mask=has_row, other=0)


@triton.jit
def gate_up_kernel(
    x, weights, hidden, order, tile_expert, tile_begin, ends, n, m, top_k, experts, tiles, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
):
    tile, column_tile = _tile_of(column_tiles, tiles, GROUP)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert >= experts:
        return
    rows, has_row, slot = _rows_of(tile, expert, tile_begin, ends, order, ROWS)
    token = slot // top_k
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    has_column = columns < m
    inner = tl.arange(0, INNER)
    x_at = x + token.to(tl.int64)[:, None] * n + inner[None, :]
    gate_at = weights + expert * 2 * m * n + columns[None, :].to(tl.int64) * n + inner[:, None]
    up_at = gate_at + m.to(tl.int64) * n
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, n, INNER):
        has_inner = inner < n - k
        own = tl.load(x_at + k, mask=has_row[:, None] & has_inner[None, :], other=0.0)
        gate = tl.dot(own, tl.load(gate_at + k, mask=has_column[None, :] & has_inner[:, None], other=0.0), gate)
        up = tl.dot(own, tl.load(up_at + k, mask=has_column[None, :] & has_inner[:, None], other=0.0), up)
    value = gate * tl.sigmoid(gate) * up
    at = hidden + rows.to(tl.int64)[:, None] * m + columns[None, :]
    tl.store(at, value.to(hidden.dtype.element_ty), mask=has_row[:, None] & has_column[None, :])


@triton.jit
def down_kernel(
    hidden, weights, out, order, routing_weights, tile_expert, tile_begin, ends, n, m, experts, tiles, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
):
    tile, column_tile = _tile_of(column_tiles, tiles, GROUP)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert >= experts:
        return
    rows, has_row, slot = _rows_of(tile, expert, tile_begin, ends, order, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    has_column = columns < n
    inner = tl.arange(0, INNER)
    hidden_at = hidden + rows.to(tl.int64)[:, None] * m + inner[None, :]
    weights_at = weights + expert * n * m + columns[None, :].to(tl.int64) * m + inner[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, m, INNER):
        has_inner = inner < m - k
        own = tl.load(hidden_at + k, mask=has_row[:, None] & has_inner[None, :], other=0.0)
        sums = tl.dot(own, tl.load(weights_at + k, mask=has_column[None, :] & has_inner[:, None], other=0.0), sums)
    sums *= tl.load(routing_weights + slot, mask=has_row, other=0.0)[:, None]
    at = out + slot.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=has_row[:, None] & has_column[None, :])


class TritonExperts:
    name, capturable = "triton fused", True
    GROUP = 8

    def __init__(self, layer, tile=None):
        self.layer = layer
        self.tile = tile

    def row_tiles(self, pairs, rows):
        """Expert and first row of each tile; the expert is `experts` where there is none. As many as there may be."""
        experts, count = self.layer.cell.experts, pairs.order.numel()
        tiles = min(count, experts) + count // rows
        begins = torch.cat([pairs.ends.new_zeros(1), pairs.ends[:-1]])
        last = ((pairs.ends - begins + rows - 1) // rows).cumsum(0)
        numbers = torch.arange(tiles, device=pairs.ends.device)
        expert = torch.searchsorted(last, numbers, right=True)
        known = expert.clamp(max=experts - 1)
        before = torch.cat([last.new_zeros(1), last[:-1]])
        return expert.to(torch.int32), (begins[known] + (numbers - before[known]) * rows).to(torch.int32)

    def __call__(self, batch):
        layer, cell = self.layer, self.layer.cell
        pairs = Sorted(batch, cell.experts)
        tile = self.tile or tiles_for(pairs.order.numel() // cell.experts)[0]
        expert, begin = self.row_tiles(pairs, tile.rows)
        hidden = batch.x.new_empty(pairs.order.numel(), cell.m)
        out = batch.x.new_empty(pairs.order.numel(), cell.n)
        sizes = {"ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner, "GROUP": self.GROUP}
        launch = {"num_warps": tile.warps, "num_stages": tile.stages, **sizes}
        tiles = expert.numel()
        across = triton.cdiv(cell.m, tile.columns)
        gate_up_kernel[(tiles * across,)](
            batch.x, layer.gate_up, hidden, pairs.order, expert, begin, pairs.ends,
            cell.n, cell.m, cell.top_k, cell.experts, tiles, across, **launch,
        )
        across = triton.cdiv(cell.n, tile.columns)
        down_kernel[(tiles * across,)](
            hidden, layer.down, out, pairs.order, batch.weights, expert, begin, pairs.ends,
            cell.n, cell.m, cell.experts, tiles, across, **launch,
        )
        return out.view(pairs.tokens, pairs.top_k, cell.n).sum(1)
