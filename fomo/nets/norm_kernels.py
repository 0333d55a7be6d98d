"""Instance norm and leaky ReLU of channels-last volumes, forward and backward, in Triton.

A volume is a table of N voxels by C channels, row after row. Each direction reads it twice: to sum over the voxels, in
parts that each are one program's work, and to apply what follows from the sums. The parts are added in a fixed order:
equal inputs give equal bits. All arithmetic is in float32.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

_PROGRAMS = 2112  # of a kernel that reads the volumes: 16 for each of the 132 multiprocessors of an H100
_VALUES = 4096  # of a block that a program handles at once


class InstanceNormLeakyReLU(torch.autograd.Function):
    """x (B, C, X, Y, Z), weight (C), bias (C), unused, eps, slope -> leaky_relu(instance_norm(x)), channels last.

    unused: a parameter (C) that the result does not depend on, or None; its gradient is zero, where DDP waits for one.
    slope: of the leaky ReLU; 1 for none.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, unused, eps, slope):
        x = x.contiguous(memory_format=torch.channels_last_3d)
        y, plan = torch.empty_like(x), _Plan(x)
        sums, found = plan.empty(plan.parts, 2), plan.empty(4)
        with torch.cuda.device_of(x):
            _sums[plan.grid](x, sums, plan.parts, *plan.sizes, **plan.blocks)
            _statistics[plan.few](x, sums, weight, bias, found, plan.parts, *plan.sizes[:2], eps, **plan.few_blocks)
            _apply[plan.grid](x, y, found, *plan.sizes, slope, **plan.blocks)
        ctx.save_for_backward(x, found)
        ctx.slope, ctx.has_unused = slope, unused is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, found = ctx.saved_tensors
        gradient, plan = gradient.contiguous(memory_format=torch.channels_last_3d), _Plan(x)
        by_x, sums, totals = torch.empty_like(x), plan.empty(plan.parts, 2), plan.empty(2)
        with torch.cuda.device_of(x):
            _gradient_sums[plan.grid](gradient, x, found, sums, plan.parts, *plan.sizes, ctx.slope, **plan.blocks)
            _gradient_totals[plan.few](sums, totals, plan.parts, plan.channels, **plan.few_blocks)
            _gradient_apply[plan.grid](gradient, x, found, totals, by_x, *plan.sizes, ctx.slope, **plan.blocks)
        by_bias, by_weight = totals.sum(0)
        return by_x, by_weight, by_bias, torch.zeros_like(by_bias) if ctx.has_unused else None, None, None


class _Plan:
    """How the programs divide a channels-last volume x."""

    def __init__(self, x):
        batch, channels, voxels = *x.shape[:2], x[0, 0].numel()
        columns = min(triton.next_power_of_2(channels), 64)
        rows, groups = _VALUES // columns, triton.cdiv(channels, columns)
        parts = max(1, min(triton.cdiv(voxels, rows), _PROGRAMS // (batch * groups)))
        each = rows * triton.cdiv(triton.cdiv(voxels, parts), rows)  # voxels of a part
        self.parts, self.device = triton.cdiv(voxels, each), x.device
        self.batch, self.channels = batch, channels
        self.grid, self.blocks = (self.parts, batch, groups), {"ROWS": rows, "COLUMNS": columns}
        self.sizes = voxels, channels, each
        self.few, self.few_blocks = (batch, triton.cdiv(channels, 16)), {"ROWS": 128, "COLUMNS": 16}

    def empty(self, *sizes):
        return torch.empty(self.batch, *sizes, self.channels, device=self.device, dtype=torch.float32)


@triton.jit
def _columns(axis: tl.constexpr, C, COLUMNS: tl.constexpr):
    """(channels of this program, which of them exist)."""
    columns = tl.program_id(axis) * COLUMNS + tl.arange(0, COLUMNS)
    return columns, columns < C


@triton.jit
def _places(first, N, C, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(places in this sample of the block of voxels from `first` of this program's part, which of them exist)."""
    columns, exist = _columns(2, C, COLUMNS)
    start = tl.program_id(0) * each
    rows = start + first + tl.arange(0, ROWS)
    end = tl.minimum(start + each, N)
    return rows[:, None].to(tl.int64) * C + columns[None, :], (rows < end)[:, None] & exist[None, :]


@triton.jit
def _of_channels(table, kind, kinds, C, COLUMNS: tl.constexpr):
    """(1, COLUMNS) float32: row `kind` of this sample's `kinds` rows of a table (B, kinds, C)."""
    columns, exist = _columns(2, C, COLUMNS)
    return tl.load(table + (tl.program_id(1) * kinds + kind) * C + columns, exist, other=0.0)[None, :]


@triton.jit
def _store_part(sums, first, second, C, parts, COLUMNS: tl.constexpr):
    """Write the two sums over this program's voxels."""
    columns, exist = _columns(2, C, COLUMNS)
    place = sums + (tl.program_id(1) * parts + tl.program_id(0)) * 2 * C + columns
    tl.store(place, tl.sum(first, 0), exist)
    tl.store(place + C, tl.sum(second, 0), exist)


@triton.jit
def _add_parts(sums, C, parts, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The two sums over all parts of this sample, each (COLUMNS,)."""
    columns, exist = _columns(1, C, COLUMNS)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, parts, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < parts)[:, None] & exist[None, :]
        place = sums + (tl.program_id(0) * parts + rows)[:, None] * 2 * C + columns[None, :]
        first += tl.load(place, mask, other=0.0)
        second += tl.load(place + C, mask, other=0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _sums(x, sums, parts, N, C, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sums (B, parts, 2, C): of the values, and of their squares, less the value of the first voxel.

    So no digits are lost where the deviation is small beside the mean.
    """
    x += tl.program_id(1).to(tl.int64) * N * C
    columns, exist = _columns(2, C, COLUMNS)
    origin = tl.load(x + columns, exist, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    square = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, each, ROWS):
        places, mask = _places(first, N, C, each, ROWS, COLUMNS)
        value = tl.where(mask, tl.load(x + places, mask, other=0.0).to(tl.float32) - origin, 0.0)
        total += value
        square += value * value
    _store_part(sums, total, square, C, parts, COLUMNS)


@triton.jit
def _statistics(x, sums, weight, bias, found, parts, N, C, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """found (B, 4, C): mean, 1 / deviation, and the scale and shift from x to the norm's result."""
    columns, exist = _columns(1, C, COLUMNS)
    total, square = _add_parts(sums, C, parts, ROWS, COLUMNS)
    beyond = total / N
    inverse = tl.rsqrt(tl.maximum(square / N - beyond * beyond, 0.0) + eps)
    mean = beyond + tl.load(x + tl.program_id(0).to(tl.int64) * N * C + columns, exist, other=0.0).to(tl.float32)
    scale = tl.load(weight + columns, exist, other=0.0).to(tl.float32) * inverse
    shift = tl.load(bias + columns, exist, other=0.0).to(tl.float32) - mean * scale
    place = found + tl.program_id(0) * 4 * C + columns
    tl.store(place, mean, exist)
    tl.store(place + C, inverse, exist)
    tl.store(place + 2 * C, scale, exist)
    tl.store(place + 3 * C, shift, exist)


@triton.jit
def _apply(x, y, found, N, C, each, slope, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    sample = tl.program_id(1).to(tl.int64) * N * C
    scale = _of_channels(found, 2, 4, C, COLUMNS)
    shift = _of_channels(found, 3, 4, C, COLUMNS)
    for first in range(0, each, ROWS):
        places, mask = _places(first, N, C, each, ROWS, COLUMNS)
        value = tl.load(x + sample + places, mask, other=0.0).to(tl.float32) * scale + shift
        tl.store(y + sample + places, tl.where(value > 0, value, value * slope), mask)


@triton.jit
def _gradient_sums(gradient, x, found, sums, parts, N, C, each, slope, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sums (B, parts, 2, C): of the gradient in front of the activation, and of it times the standardised x."""
    sample = tl.program_id(1).to(tl.int64) * N * C
    mean = _of_channels(found, 0, 4, C, COLUMNS)
    inverse = _of_channels(found, 1, 4, C, COLUMNS)
    scale = _of_channels(found, 2, 4, C, COLUMNS)
    shift = _of_channels(found, 3, 4, C, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, each, ROWS):
        places, mask = _places(first, N, C, each, ROWS, COLUMNS)
        value = tl.load(x + sample + places, mask, other=0.0).to(tl.float32)
        given = tl.load(gradient + sample + places, mask, other=0.0).to(tl.float32)
        given = tl.where(value * scale + shift > 0, given, given * slope)
        total += given
        product += given * ((value - mean) * inverse)
    _store_part(sums, total, product, C, parts, COLUMNS)


@triton.jit
def _gradient_totals(sums, totals, parts, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """totals (B, 2, C): the sums over all parts."""
    columns, exist = _columns(1, C, COLUMNS)
    total, product = _add_parts(sums, C, parts, ROWS, COLUMNS)
    place = totals + tl.program_id(0) * 2 * C + columns
    tl.store(place, total, exist)
    tl.store(place + C, product, exist)


@triton.jit
def _gradient_apply(gradient, x, found, totals, by_x, N, C, each, slope, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """by_x: scale (gradient - its mean - standardised x times the mean of gradient times standardised x)."""
    sample = tl.program_id(1).to(tl.int64) * N * C
    mean = _of_channels(found, 0, 4, C, COLUMNS)
    inverse = _of_channels(found, 1, 4, C, COLUMNS)
    scale = _of_channels(found, 2, 4, C, COLUMNS)
    shift = _of_channels(found, 3, 4, C, COLUMNS)
    total = _of_channels(totals, 0, 2, C, COLUMNS) / N
    product = _of_channels(totals, 1, 2, C, COLUMNS) / N
    for first in range(0, each, ROWS):
        places, mask = _places(first, N, C, each, ROWS, COLUMNS)
        value = tl.load(x + sample + places, mask, other=0.0).to(tl.float32)
        given = tl.load(gradient + sample + places, mask, other=0.0).to(tl.float32)
        given = tl.where(value * scale + shift > 0, given, given * slope)
        tl.store(by_x + sample + places, scale * (given - total - (value - mean) * inverse * product), mask)
