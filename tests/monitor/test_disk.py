"""Forecast of a run's disk space, and the choice of the sample grids that are kept."""

import itertools

import pytest

from cyclestyle.monitor.disk import Plan, kept_checkpoints, size, thinned


@pytest.mark.parametrize(("every", "end"), [(1, 300), (500, 200_000), (500, 200_123)])
@pytest.mark.parametrize("keep", [2, 5, 50])
def test_thinning_after_each_sample_keeps_the_same_samples_as_thinning_once_at_the_end(
    every: int, end: int, keep: int
) -> None:
    steps = [*range(0, end, every), end]
    present: list[int] = []
    for step in steps:
        present = sorted(thinned([*present, step], keep))
    assert present == sorted(thinned(steps, keep))


def test_newest_samples_are_all_kept_and_older_ones_thinned_out() -> None:
    steps = list(range(0, 1_257_400, 500))  # 200 epochs of monet2photo
    kept = sorted(thinned(steps, 50))
    assert kept[0] == 0
    assert kept[-50:] == steps[-50:]
    gaps = [later - earlier for earlier, later in itertools.pairwise(kept[1:])]
    assert gaps == sorted(gaps, reverse=True)
    assert 150 < len(kept) < 200
    assert thinned(steps, None) == set(steps)
    assert thinned(steps[:50], 50) == set(steps[:50])


@pytest.mark.parametrize(
    ("total", "settings", "expected"),
    [
        (4000, {"keep": 3}, 4),  # the fourth is written before the first is removed
        (2000, {"keep": 3}, 2),
        (2500, {"keep": 3}, 3),
        (10_000, {"keep": 2, "keep_every": 2000}, 7),  # 2000, 4000, 6000, 8000
        (10_000, {"keep": 2, "has_best": True}, 4),
    ],
)
def test_disk_plan_counts_largest_number_of_checkpoints_present_at_once(
    total: int, settings: dict[str, int], expected: int
) -> None:
    assert kept_checkpoints(total, **{"save_every": 1000, "keep_every": None, "has_best": False} | settings) == expected


def test_disk_plan_counts_logs_and_samples() -> None:
    plan = Plan(start=40, total=101, log_every=10, sample_every=50, grid_bytes=7)
    assert (plan.logs, plan.coming_logs, plan.sampled) == (11, 7, [0, 50, 100, 101])


def test_sizes_are_printed_in_megabytes_or_gigabytes() -> None:
    assert (size(3_240_000), size(1_440_000_000), size(0)) == ("3.2 MB", "1.4 GB", "0.0 MB")
