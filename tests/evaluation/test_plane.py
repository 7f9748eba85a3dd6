"""The plane of style and structure: choice of the points, numbers, and diagrams that people can read."""

import itertools
import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from cyclestyle.evaluation import plane, plots
from cyclestyle.evaluation.plots import DARK, GRID, PAPER
from cyclestyle.evaluation.report import DirectionReport, Row, Score
from cyclestyle.metrics.estimate import Estimate


def score(name: str, value: float, *, row: Row = "translated", ruler: str = "vgg16_hed", width: float = 0.01) -> Score:
    return Score(name, ruler, row, value, value - width, value + width, n=30, reference=40, size=128, resize="bicubic")


def at(strength: float, style: float, structure: float, *more: Score) -> tuple[float, DirectionReport]:
    scores = (score("style", style), score("structure", structure, width=0.001), *more)
    return strength, DirectionReport("photo2monet", scores, strength)


MAIN = at(1, 0.12, 0.02, score("style", 0.3, row="untouched"), score("style", 0.02, row="floor"))
CURVE = [MAIN, at(0.75, 0.14, 0.012), at(0.5, 0.2, 0.006), at(0.25, 0.27, 0.002)]
# Points that lie close together, beside the floor.
CROWDED = [
    at(1, 0.296, 0.002, score("style", 0.31, row="untouched"), score("style", 0.29, row="floor")),
    *(at(strength, 0.31 - 0.014 * strength, 0.002 * strength) for strength in (0.2, 0.4, 0.5, 0.6, 0.8)),
]


def test_points_are_sorted_and_start_with_untouched_photos() -> None:
    found = plane.plane(CURVE)
    assert [point.strength for point in found.points] == [0, 0.25, 0.5, 0.75, 1]
    assert found.points[0].structure == (0, 0, 0)
    assert found.points[0].style == pytest.approx((0.3, 0.29, 0.31))
    assert found.points[-1].style == pytest.approx((0.12, 0.11, 0.13))
    assert found.points[-1].structure == pytest.approx((0.02, 0.019, 0.021))
    assert found.floor == pytest.approx((0.02, 0.01, 0.03))
    assert [point.label for point in found.points[::2]] == ["untouched photo", "strength 0.5", "model"]


def test_plane_of_report_contains_its_curve() -> None:
    (_, main), *others = CURVE
    report = main._replace(curve=tuple(other for _, other in others))
    assert plane.of_report(report) == plane.plane(CURVE)
    assert [point.strength for point in plane.of_report(main).points] == [0, 1]


def test_first_network_that_measures_style_also_measures_structure_if_it_can() -> None:
    alone = DirectionReport(
        "a2b",
        (
            score("structure", 0.5, ruler="efficientnet_lite0"),
            score("style", 0.2),
            score("style", 0.9, ruler="vgg19"),
            score("structure", 0.1),
        ),
    )
    (point,) = plane.plane([(1, alone)]).points
    assert (point.style.value, point.structure.value) == (0.2, 0.1)
    without = alone._replace(scores=alone.scores[:3])
    (point,) = plane.plane([(1, without)]).points
    assert (point.style.value, point.structure.value) == (0.2, 0.5)


def test_plane_without_style_or_structure_is_empty_and_not_written(tmp_path: Path) -> None:
    for name in ("style", "structure"):
        found = plane.plane([(1, DirectionReport("a2b", (score(name, 0.2),)))])
        assert found == plane.Plane("a2b")
        assert plane.write([found], tmp_path / "new") == []
    assert not (tmp_path / "new").exists()


def test_json_file_has_all_numbers_with_their_networks(tmp_path: Path) -> None:
    strength, report = at(1, 0.12, 0.02)
    no_interval = report._replace(scores=tuple(each._replace(low=None, high=None) for each in report.scores))
    files = plane.write([plane.plane(CURVE), plane.plane([(strength, no_interval)])], tmp_path)
    assert [file.name for file in files] == ["plane.json", "plane.png", "plane.svg"]
    content = json.loads(files[0].read_text())
    first, second = content["directions"]
    assert first["style"] == {"ruler": "vgg16_hed", "size": 128, "resize": "bicubic", "n": 30, "reference": 40}
    assert first["floor"]["value"] == 0.02
    assert [point["strength"] for point in first["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert first["points"][2]["style"] == pytest.approx({"value": 0.2, "low": 0.19, "high": 0.21})
    assert second["points"][0]["style"] == {"value": 0.12, "low": None, "high": None}
    assert second["floor"] is None


def test_diagram_files_are_whole_and_repeatable(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second = (plane.write([plane.plane(CURVE), plane.plane(CROWDED)], tmp_path / name) for name in ("x", "y"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    with Image.open(first[1]) as image:
        assert image.width > 1.8 * image.height  # two panels
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (plots.BLUE, plots.ORANGE, plots.PAPER)} <= colours
    assert ElementTree.parse(first[2]).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("curve", [CURVE, CROWDED], ids=["wide", "crowded"])
def test_labels_cover_neither_each_other_nor_points(curve: list[tuple[float, DirectionReport]]) -> None:
    pytest.importorskip("matplotlib")
    figure, (axes,) = plots.new_figure(1)
    found = plane.plane(curve)
    plane._draw(found, axes)
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    labels = {name: box for name, box in boxes.items() if not name.startswith("n = ")}
    assert labels.keys() == {*(point.label for point in found.points), "floor: real images against real images"}
    for (name, box), (other_name, other) in itertools.combinations(labels.items(), 2):
        assert not box.overlaps(other), (name, other_name)
    for point in found.points:
        x, y = axes.transData.transform((point.structure.value, point.style.value))
        assert not any(box.contains(x, y) for box in labels.values()), point.label
    for name, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, name


def test_labels_at_the_edges_stay_inside_the_axes() -> None:
    pytest.importorskip("matplotlib")
    figure, (axes,) = plots.new_figure(1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    plots.place(axes, [plots.Label(x, y, f"corner {x} {y}") for x, y in corners])
    figure.draw_without_rendering()
    for text in axes.texts:
        box, inside = text.get_window_extent(), axes.bbox
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1, text.get_text()
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1, text.get_text()


def test_all_colours_of_svg_have_a_dark_version(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, _, svg = plane.write([plane.plane(CURVE)], tmp_path)
    rules, drawn = svg.read_text().split("</style>", 1)
    used = set(re.findall(r"(?:fill|stroke): (#\w+)", drawn))
    assert used <= DARK.keys()
    assert {plots.INK, plots.MUTED, GRID, PAPER, plots.BLUE, plots.ORANGE} <= used
    assert all(f'[style*="fill: {light}"] {{ fill: {DARK[light]} !important }}' in rules for light in used)
    # Text without a colour of its own would stay black on a dark page.
    root = ElementTree.fromstring(svg.read_text())
    glyphs = [group for group in root.iter("{http://www.w3.org/2000/svg}g") if group.get("id", "").startswith("text_")]
    assert glyphs
    assert all("fill: #" in ElementTree.tostring(group, encoding="unicode") for group in glyphs)


def test_text_has_contrast_on_light_and_dark_background() -> None:
    def luminance(colour: str) -> float:  # WCAG 2.2, "relative luminance"
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for light, dark in DARK.items():
        if light not in (GRID, PAPER):
            assert (luminance(PAPER) + 0.05) / (luminance(light) + 0.05) >= 4.5, light
            assert (luminance(dark) + 0.05) / (luminance(DARK[PAPER]) + 0.05) >= 4.5, dark


def test_without_matplotlib_numbers_are_written_and_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert plane.write([plane.plane(CURVE)], tmp_path) == [tmp_path / "plane.json"]
    assert capsys.readouterr().err.splitlines() == [
        "cyclestyle: plane.png and plane.svg are left out: drawing them needs matplotlib: "
        "pip install 'cyclestyle[metrics]'"
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["plane.json"]


def test_negative_floor_and_missing_intervals_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    _, (axes,) = plots.new_figure(1)
    nan = math.nan
    points = (plane.Point(1.0, Estimate(0.02, nan, nan), Estimate(0.1, nan, nan)),)
    floor = Estimate(-0.03, nan, nan)
    plane._draw(plane.Plane("a2b", points, floor, score("style", 0.1), score("structure", 0.02)), axes)
    assert axes.get_ylim()[0] < -0.03
    assert axes.get_xlim()[1] > 0.02
