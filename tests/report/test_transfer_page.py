"""A sweep of learning rates, drawn and as tables: what moved, by how much the transferred rate is worse."""

from pathlib import Path

import pytest

from l4spec.errors import UserError
from l4spec.report.page import to_text
from l4spec.report.templating import figure_svg
from l4spec.report.transfer_page import features_section, sweep_section
from l4spec.training.transfer import DIVERGED, FeatureSize, TransferPoint, transferred
from tests.cli.conftest import Run, run

__all__ = ["run"]

Losses = dict[int, dict[float, tuple[float, ...]]]
LOSSES: Losses = {1: {1.0: (2.0, 2.2), 2.0: (2.4, 2.6)}, 4: {1.0: (1.9, 2.1), 2.0: (1.8, 1.9)}}


def points(losses: Losses) -> list[TransferPoint]:
    return [
        TransferPoint("width", times, rate, seed, loss)
        for times, by in losses.items()
        for rate, each in by.items()
        for seed, loss in enumerate(each)
    ]


def test_the_rate_of_the_first_growth_is_judged_at_the_others_over_pairs_of_seeds() -> None:
    small, large = transferred(points(LOSSES))
    assert (small.best_rate, small.moved, small.excess, small.error) == (1.0, 0, 0.0, 0.0)
    assert (large.best_rate, large.moved) == (2.0, 1)
    assert large.tuned == pytest.approx(1.85)
    assert large.excess == pytest.approx(0.15)  # 0.1 and 0.2
    assert large.error == pytest.approx(0.05)  # their deviation 0.0707 over the root of 2
    assert not large.is_close
    assert transferred(points({1: {1.0: (2.0,), 2.0: (2.1,)}, 2: {1.0: (2.0,), 2.0: (1.995,)}}))[1].is_close


def test_a_sweep_is_drawn_with_its_best_rates_and_what_the_first_costs() -> None:
    swept = points(LOSSES)
    text = to_text((sweep_section(swept, transferred(swept)),))
    for part in ("2.1000*", "1.8500*", "+1", "0.1500 (8.11%)", "0.0500", "moves by 1 steps", "Means over 2 seeds"):
        assert part in text, part
    svg = figure_svg(sweep_section(swept, transferred(swept)))
    assert svg.count("<circle") == 4
    assert "width x4, 2: 1.85" in svg


@pytest.mark.parametrize("others", [(), (2.0,), (2.0, 2.0)])
def test_runs_that_diverge_are_called_so_and_left_out_of_the_picture(others: tuple[float, ...]) -> None:
    """One seed of several that diverges is no mean of a third of a billion."""
    diverged = (DIVERGED, *others)
    fine = (2.0,) * len(diverged)
    swept = points({1: {1.0: fine, 2.0: diverged}, 2: {1.0: diverged, 2.0: (1.0,) * len(diverged)}})
    section = sweep_section(swept, transferred(swept))
    assert to_text((section,)).count("diverged") == 3  # two rates, and the rate that does not transfer
    assert figure_svg(section).count("<circle") == 2
    assert not transferred(swept)[1].is_close


def test_a_rate_that_diverges_does_not_transfer() -> None:
    lost = points({1: {1.0: (DIVERGED,)}, 2: {1.0: (2.0,)}})
    with pytest.raises(UserError, match="nothing to draw"):
        figure_svg(sweep_section(lost[:1], transferred(lost[:1])))
    text = to_text((sweep_section(lost, transferred(lost)),))
    assert "diverge at every rate" in text
    assert "yes" not in text
    assert not any(row.is_close for row in transferred(lost))


def test_one_rate_shows_no_transfer_and_the_end_of_a_grid_no_best_rate() -> None:
    alone = points({1: {1.0: (2.0,)}, 2: {1.0: (1.9,)}})
    text = to_text((sweep_section(alone, transferred(alone)),))
    assert "says nothing about transfer" in text
    assert "yes" not in text
    grid: Losses = {1: {1.0: (2.0,), 2.0: (1.8,), 4.0: (1.9,)}, 2: {1.0: (2.0,), 2.0: (1.8,), 4.0: (1.7,)}}
    text = to_text((sweep_section(points(grid), transferred(points(grid))),), 200)
    assert "the best rate of width x2 is at an end of the grid" in text


def test_one_loss_alone_and_outputs_of_one_size_are_drawn() -> None:
    alone = points({1: {1.0: (2.0,)}})
    assert figure_svg(sweep_section(alone, transferred(alone))).count("<circle") == 1
    for size in (0.0, 3.0):
        section = features_section([FeatureSize("width", times, 0, "text.head", size) for times in (1, 2)], 1)
        assert figure_svg(section).count("<circle") == 2


def test_a_run_that_cannot_be_is_refused_before_any_other(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old.csv").touch()
    for arguments, words in (
        (("--width-times", "1,1024"), "are free"),
        (("--batch-times", "1,1000"), "more than the phase has"),
        (("--width-times", ""), "expected whole numbers"),
        (("--width-times", "1", "--csv", str(tmp_path / "old.csv")), "--force overwrites it"),
        (("--width-times", "1", "--csv", str(tmp_path / "no" / "a.csv")), "is no folder"),
    ):
        result = run("transfer", "recipes/transfer", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert "loss" not in result.stderr


def test_a_growth_or_a_rate_that_is_named_twice_is_trained_once(run: Run) -> None:
    few = ("--set", "phases[0].tokens=512")
    result = run("transfer", "recipes/transfer", *few, "--width-times", "2,1,2", "--rates", "1,0.5,1")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("loss") == 4
    assert result.stdout.index("width x1") < result.stdout.index("width x2")


def test_features_are_means_over_seeds_and_say_how_much_they_change() -> None:
    sizes = [
        FeatureSize("width", times, seed, node, size)
        for node, by in {"text.head": {1: (1.0, 1.2), 4: (1.3, 1.34)}, "text.layers.1.ffn": {4: (9.0, 9.0)}}.items()
        for times, each in by.items()
        for seed, size in enumerate(each)
    ]
    text = to_text((features_section(sizes, 10),))
    assert "1.1000 +- 0.1414" in text
    assert "1.20" in text  # 1.32 / 1.1
    assert "layers.1" not in text  # not at every growth


def test_a_picture_that_could_not_be_written_is_refused_before_any_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old.svg").touch()
    for arguments, words in (
        (("--width-times", "1", "--depth-times", "1", "--svg", str(tmp_path / "a.svg")), "one picture is of one axis"),
        (("--width-times", "1", "--svg", str(tmp_path / "old.svg")), "--force overwrites it"),
        (("--width-times", "1", "--svg", str(tmp_path / "no" / "a.svg")), "is no folder"),
    ):
        result = run("transfer", "recipes/transfer", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr


def test_the_check_of_features_is_drawn_and_written_for_every_seed(run: Run, tmp_path: Path) -> None:
    csv, svg = tmp_path / "features.csv", tmp_path / "features.svg"
    arguments = ("--features", "1", "--width-times", "1,2", "--repeats", "2", "--csv", str(csv), "--svg", str(svg))
    result = run("transfer", "recipes/transfer", *arguments)
    assert result.exit_code == 0, result.stderr
    rows = [line.split(",") for line in csv.read_text().splitlines()]
    assert rows[0] == ["axis", "times", "seed", "node", "size"]
    assert {(times, seed) for _, times, seed, _, _ in rows[1:]} == {("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")}
    assert svg.read_text().startswith("<svg")
