"""Text tables of scores, and comparisons of models."""

import math

import pytest

from cyclestyle.evaluation import comparison, table
from cyclestyle.evaluation.report import DirectionReport, Report, Row, Score


def kid(
    value: float, *, width: float = 0.002, ruler: str = "vgg16_hed", row: Row = "translated", size: int = 128
) -> Score:
    low, high = value - width, value + width
    return Score("kid", ruler, row, value, low, high, n=40, reference=50, size=size, resize="bicubic")


def report(*scores: Score, path: str = "runs/mine", step: int = 10, direction: str = "photo2monet") -> Report:
    return Report(path, step, "ema", (DirectionReport(direction, scores),))


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.0412, 0.0361, 0.0472, "0.041 [0.036, 0.047]"),
        (19.42, 19.02, 19.81, "19.42 [19.02, 19.81]"),
        (-0.0004, -0.0021, 0.0012, "-0.0004 [-0.0021, 0.0012]"),
        (171.5, 120.2, 230.9, "172 [120, 231]"),
        (13.3512, None, None, "13.35"),
        (0.0, None, None, "0.000"),
        (math.inf, None, None, "infinite"),
        (0.5, 0.5, 0.5, "0.5000 [0.5000, 0.5000]"),
    ],
)
def test_number_has_digits_of_its_interval(value: float, low: float | None, high: float | None, text: str) -> None:
    assert table.number(Score("kid", "vgg16_hed", "translated", value, low, high)) == text


def test_table_has_a_block_for_each_protocol_and_a_column_for_each_row() -> None:
    ssim = Score("content_ssim", None, "translated", 0.5, 0.4, 0.6, n=40)
    text = table.table(report(kid(0.04), kid(0.2, row="untouched"), kid(0.3, size=256), ssim))
    assert text.split("\n\n") == [
        "photo2monet",
        "features, vgg16_hed, images resized to 128 px, bicubic\n"
        "       this model               photo unchanged          n\n"
        "  KID  0.0400 [0.0380, 0.0420]  0.2000 [0.1980, 0.2020]  40 / 50",
        "features, vgg16_hed, images resized to 256 px, bicubic\n"
        "       this model               n\n"
        "  KID  0.3000 [0.2980, 0.3020]  40 / 50",
        "pixels, images as stored\n"
        "                                   this model         n\n"
        "  SSIM to the photo: content kept  0.50 [0.40, 0.60]  40",
        table.FOOTER,
    ]


def test_other_numbers_of_images_are_named_in_the_line() -> None:
    text = table.table(report(kid(0.04), kid(0.01, row="floor")._replace(n=25, reference=25)))
    assert text.split("\n\n")[1].endswith("40 / 50, floor 25 / 25")


def test_curve_has_a_line_for_each_strength() -> None:
    direction = DirectionReport("photo2monet", (kid(0.04),))
    curve = tuple(
        direction._replace(strength=strength, scores=(kid(value),)) for strength, value in ((0, 0.2), (1, 0.04))
    )
    text = table.table(Report("runs/mine", 10, "ema", (direction._replace(curve=curve, notes=("left out: x",)),)))
    blocks = text.split("\n\n")
    assert blocks[0] == "photo2monet\n  left out: x"
    assert [line.split()[:3] for line in blocks[2].splitlines()[2:]] == [
        ["strength", "0", "0.2000"],
        ["strength", "1", "0.0400"],
    ]


def test_every_score_has_a_label() -> None:
    from cyclestyle.evaluation.scores import SCORES

    assert table.LABELS.keys() == {*SCORES}
    assert {*SCORES} > comparison.HIGHER_IS_BETTER
    assert {*SCORES} > {*comparison.HEADLINES}


# ------------------------------------------------------------------------------------------------------- comparison


def test_best_model_of_each_line_is_marked() -> None:
    reports = [report(kid(value), path=path) for path, value in (("x", 0.1), ("y", 0.04), ("z", 0.043))]
    block, key = comparison.table(comparison.compare(reports)).split("\n\n")
    assert block == (
        "photo2monet, features, vgg16_hed, images resized to 128 px, bicubic\n"
        "       x                        y                          z\n"
        "  KID  0.1000 [0.0980, 0.1020]  0.0400 [0.0380, 0.0420] *  0.0430 [0.0410, 0.0450] ~"
    )
    assert key.startswith("*: best of the line")


def test_higher_psnr_is_better_and_copying_has_no_best() -> None:
    def scores(psnr: float, copying: float) -> tuple[Score, ...]:
        return (
            Score("truth_psnr", None, "translated", psnr, psnr - 0.1, psnr + 0.1, n=4),
            Score(
                "copying", "vgg16_hed", "translated", copying, None, None, n=4, reference=9, size=128, resize="bicubic"
            ),
        )

    text = comparison.table(
        comparison.compare([report(*scores(19, 0.1), path="x"), report(*scores(21, 0.2), path="y")])
    )
    psnr, copying = (line for line in text.splitlines() if line.startswith(("  PSNR", "  distance")))
    assert psnr.endswith("21.00 [20.90, 21.10] *")
    assert psnr.count("*") == 1
    assert "*" not in copying
    assert "~" not in copying


def test_rulers_that_order_models_differently_are_named() -> None:
    x = report(kid(0.04), kid(0.30, ruler="efficientnet_lite0"), path="x")
    y = report(kid(0.08), kid(0.20, ruler="efficientnet_lite0"), path="y")
    compared = comparison.compare([x, y])
    (found,) = compared.disagreements
    assert str(found) == ("rulers disagree on KID of photo2monet: vgg16_hed prefers x, efficientnet_lite0 prefers y")
    assert comparison.table(compared).endswith(str(found))
    assert not comparison.compare([x, x._replace(checkpoint="z")]).disagreements


def test_disagreement_within_the_noise_is_marked() -> None:
    x = report(kid(0.04, width=0.05), kid(0.30, ruler="efficientnet_lite0"), path="x")
    y = report(kid(0.08, width=0.05), kid(0.20, ruler="efficientnet_lite0"), path="y")
    (found,) = comparison.compare([x, y]).disagreements
    assert found.is_noise
    assert "this may be noise" in str(found)


def test_scores_of_other_sizes_are_not_compared() -> None:
    x = report(kid(0.04), kid(0.30, ruler="efficientnet_lite0"), path="x")
    y = report(kid(0.08), kid(0.20, ruler="efficientnet_lite0", size=256), path="y")
    assert not comparison.compare([x, y]).disagreements
    text = comparison.table(comparison.compare([x, y]))
    assert text.count("photo2monet, features") == 3


def test_equal_paths_are_distinguished_by_step() -> None:
    compared = comparison.compare([report(kid(0.1)), report(kid(0.2), step=20)])
    assert compared.labels == ("runs/mine (step 10, ema)", "runs/mine (step 20, ema)")
