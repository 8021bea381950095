"""Position tables against formulas written entry by entry."""

import math

import pytest
import torch

from tok1d.nn.position import resample_grid, rotate, sequence_angles, sincos_1d, sincos_2d, sincos_interleaved


def test_one_dimension_entry_by_entry() -> None:
    positions = [0.0, 1.0, 2.5, 100.0]
    table = sincos_1d(6, torch.tensor(positions))
    for row, position in enumerate(positions):
        for k in range(3):
            angle = position / 10000 ** (k / 3)
            assert math.isclose(table[row, k].item(), math.sin(angle), abs_tol=1e-12)
            assert math.isclose(table[row, 3 + k].item(), math.cos(angle), abs_tol=1e-12)


def test_two_dimensions_take_the_column_first() -> None:
    height, width, dim = 2, 3, 8
    table = sincos_2d(dim, height, width)
    assert table.shape == (6, dim) and table.dtype == torch.float32
    for row in range(height):
        for column in range(width):
            expected = []
            for index in (column, row):
                angles = [index / 10000 ** (k / 2) for k in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row * width + column], torch.tensor(expected))


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sincos_2d(6, 2, 2)
    with pytest.raises(ValueError, match="even width, got 5"):
        sincos_1d(5, torch.zeros(1))


def test_resampling_to_the_same_grid_is_the_identity() -> None:
    table = torch.randn(1, 6, 4)
    assert torch.equal(resample_grid(table, (2, 3), (2, 3)), table)


@pytest.mark.parametrize("new", [(5, 4), (2, 2), (9, 3)])
def test_resampling_keeps_constants(new: tuple[int, int]) -> None:
    row = torch.tensor([1.0, -2.0, 0.5])
    resampled = resample_grid(row.expand(1, 12, 3), (3, 4), new)
    torch.testing.assert_close(resampled, row.expand(1, new[0] * new[1], 3))


def test_resampling_distinguishes_rows_from_columns() -> None:
    rows = torch.arange(3.0).repeat_interleave(4)[None, :, None]  # constant along every row of a 3 x 4 grid
    resampled = resample_grid(rows, (3, 4), (6, 8)).view(6, 8)
    torch.testing.assert_close(resampled, resampled[:, :1].expand(6, 8))
    assert (resampled[1:, 0] > resampled[:-1, 0]).all()


def test_interleaved_table_entry_by_entry() -> None:
    table = sincos_interleaved(6, 5)
    assert table.shape == (5, 6) and table.dtype == torch.float32
    for n in range(5):
        for k in range(3):
            angle = n / 10000 ** (k / 3)
            torch.testing.assert_close(table[n, 2 * k : 2 * k + 2], torch.tensor([math.sin(angle), math.cos(angle)]))


def test_rotation_depends_on_the_distance_alone_and_keeps_lengths() -> None:
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)
    angles = sequence_angles(8, torch.arange(20)).double()
    q, k = (rotate(x.expand(20, 8), angles.cos(), angles.sin()) for x in (q, k))
    scores = q @ k.T
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(q.norm(dim=1), q[0].norm().expand(20))
    assert angles[1].tolist() == pytest.approx([10000 ** (-i / 4) for i in range(4)])
