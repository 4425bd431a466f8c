"""The page: one file, nothing from outside, nothing executed that a model or a data file said, numbers as they should be."""

import html.parser
import json
import re
import shutil
import subprocess

import altair as alt
import numpy as np
import polars as pl
import pytest

from inscape.errors import InputError
from inscape.runs import Headline, Page, Reported, Run, Section, read_run
from inscape.runs.display import format_column, format_interval, format_number
from inscape.runs.figures import inline_svg, specification
from inscape.runs.page import from_json, to_json
from inscape.runs.theme import DARK, PALETTE, RAMP

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
POINTS = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [3.0, 1.0, 2.0], "who": [EVIL, "b & c", "\u2028 d"]})


def chart(title="t"):
    return alt.Chart(POINTS, title=title).mark_point(clip=True).encode(x="x", y="y", color="who", tooltip="who")


def evil_page():
    return Page(
        title=EVIL,
        lede=f"{EVIL}\n\nsecond `{EVIL}`",
        paper=EVIL,
        headlines=[Headline("r2", EVIL, EVIL, EVIL), Headline("absent", "Not there", "No value.")],
        sections=[
            Section(EVIL, EVIL, figure="points", caption=EVIL, table=POINTS),
            Section("Second", figure="again", table="t", table_limit=2),
        ],
        reported=[Reported(EVIL, EVIL, EVIL, why=EVIL), Reported("R²", "0.906", key="r2")],
        notes=[EVIL],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "r"
    with Run.open(folder, "study", {"name": EVIL}, seed=0, inputs={EVIL: EVIL}, quiet=True) as run:
        run.record(model=EVIL, nested={EVIL: [1, 2]})
        run.stage("t", lambda: {"t": POINTS.rename({"who": EVIL})})
        run.figure("points", chart(EVIL))
        run.figure("again", chart())
        run.summary({"r2": 0.9061234, "r2_lo": 0.8812, "r2_hi": 0.93})
        run.finish(evil_page())
    return folder


class Reader(html.parser.HTMLParser):
    """What an HTML parser makes of the page: elements with attributes, text outside scripts, scripts by type."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts, self.text, self._open = [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._open = dict(attrs).get("type", "")
            self.scripts.append([self._open, ""])

    def handle_endtag(self, tag):
        if tag == "script":
            self._open = None

    def handle_data(self, data):
        if self._open is None:
            self.text.append(data)
        else:
            self.scripts[-1][1] += data


@pytest.fixture(scope="module")
def page(folder):
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def test_foreign_text_stays_text(page):
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert [kind for kind, _ in page.scripts] == ["application/json", "application/json", "", ""]
    assert "".join(page.text).count(EVIL) >= 12


def test_chart_data_comes_back_from_inside_the_page(page, folder):
    specs = [json.loads(text) for kind, text in page.scripts if kind]
    assert specs[0] == json.loads((folder / "figures" / "points.json").read_text())
    assert {row["who"] for row in next(iter(specs[0]["datasets"].values()))} == set(POINTS["who"])


def test_nothing_is_loaded_from_outside(page, folder):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "data", "srcset", "action", "poster"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    text = (folder / "report.html").read_text(encoding="utf-8")
    styles = "".join(re.findall(r"<style>.*?</style>", text, re.DOTALL))
    assert "@import" not in styles
    assert "url(" not in styles
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'unsafe-eval' 'sha256-" in policy
    assert "unsafe-inline'" not in policy.split("script-src")[1]


def test_vega_is_there_once_and_only_where_there_are_charts(page, tmp_path):
    assert len([text for kind, text in page.scripts if not kind and len(text) > 100_000]) == 1
    with Run.open(tmp_path / "r", "s", {}, seed=0, quiet=True) as run:
        assert run.finish(Page("No charts", "here")).stat().st_size < 30_000


def test_drawings_on_one_page_do_not_share_names(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [
        use for _, a in page.elements for value in a.values() for use in re.findall(r"url\(#([^)]*)\)", value or "")
    ]
    assert used
    assert set(used) <= set(ids)


def test_headlines_and_the_papers_numbers(page):
    text = " ".join(" ".join(page.text).split())
    assert "0.906 [0.881, 0.930]" in text
    assert "Not there –" in text
    assert "2 of 3 rows" in text


def test_svg_from_somebody_else_is_cleaned(tmp_path):
    (tmp_path / "x.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="a()">'
        '<script>a()</script><a xlink:href="javascript:a()"><text onclick="a()">t</text></a><image href="http://e.org/i"/>'
        '<g clip-path="url(#c)" fill="url(http://e.org/p)"/><clipPath id="c"/></svg>'
    )
    text = inline_svg(tmp_path, "x", "d")
    for bad in ("script", "onload", "onclick", "http://e.org/i", "url(http"):
        assert bad not in text
    assert 'clip-path="url(#x-0)"' in text
    assert 'id="x-0"' in text


def test_rewritten_report_is_the_same_and_needs_only_the_folder(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = (copy / "report.html").read_bytes()
    for path in [copy / "report.html", *copy.glob("figures/*.svg"), *copy.glob("figures/*.png")]:
        path.unlink()
    read_run(copy).rewrite_report()
    assert (copy / "report.html").read_bytes() == before
    assert (copy / "figures" / "again.png").read_bytes()[:4] == b"\x89PNG"
    (copy / "figures" / "again.json").write_text("{")
    with pytest.raises(InputError, match=r"again\.json"):
        read_run(copy).rewrite_report()


def test_unfinished_run_gets_a_plain_page(tmp_path):
    with Run.open(tmp_path / "r", "s", {}, seed=0, quiet=True) as run:
        run.stage("fit", lambda: {"fit": POINTS})
        run.figure("points", chart())
    text = read_run(tmp_path / "r").rewrite_report().read_text(encoding="utf-8")
    assert "s (unfinished)" in text
    assert "Table fit" in text
    assert 'data-name="points"' in text


def test_page_survives_json():
    frame = pl.DataFrame(
        {"i": [1, None], "f": [float("nan"), 2.0], "s": ["a", None], "b": [True, None], "l": [[1, 2], None]}
    )
    page = Page("t", "l", sections=[Section("h", table=frame, table_limit=2)], notes=["n"])
    back = from_json(json.loads(json.dumps(to_json(page))))
    assert back.title == "t"
    assert back.sections[0].table_rows == 2
    assert back.sections[0].table.drop("l").equals(frame.drop("l"), null_equal=True)
    assert back.sections[0].table["l"].to_list() == ["1, 2", None]


def test_a_section_that_names_what_is_not_there_is_refused(tmp_path):
    with Run.open(tmp_path / "r", "s", {}, seed=0, quiet=True) as run:
        with pytest.raises(InputError, match="no figure 'x'"):
            run.finish(Page("t", "l", sections=[Section("h", figure="x")]))
        with pytest.raises(InputError, match="no table 'x'"):
            run.finish(Page("t", "l", sections=[Section("h", table="x")]))
        assert not run.done
        assert not read_run(tmp_path / "r").done


def test_figures_do_not_fetch(tmp_path):
    with (
        Run.open(tmp_path / "r", "s", {}, seed=0, quiet=True) as run,
        pytest.raises(InputError, match="cannot be drawn"),
    ):
        run.figure("u", alt.Chart("http://localhost:9/x.csv").mark_point().encode(x="a:Q"))


def test_every_colour_of_a_drawing_has_a_dark_counterpart(folder):
    svg = (folder / "figures" / "again.svg").read_text()
    drawing = svg.split("</style>", 1)[1]
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', drawing)) - {"none", "transparent"}
    assert colours <= DARK.keys(), colours - DARK.keys()
    assert "prefers-color-scheme: dark" in svg


def test_all_rows_and_the_charts_own_config():
    many = alt.Chart(pl.DataFrame({"x": np.arange(6000)})).mark_tick().encode(x="x").configure_axis(grid=False)
    spec = specification(many)
    assert len(next(iter(spec["datasets"].values()))) == 6000
    assert spec["config"]["axis"]["grid"] is False
    assert spec["config"]["axis"]["labelLimit"] == 0


def linear(colour):
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira & Fernandes (2009), severity 1.
SEEN_BY = {
    "full colour vision": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("eye", SEEN_BY)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_palette_can_be_told_apart(eye, mode):
    colours = [DARK[colour] if mode == "dark" else colour for colour in PALETTE]
    seen = [lab(SEEN_BY[eye] @ linear(colour)) for colour in colours]
    distances = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a in range(len(seen)) for b in range(a)}
    assert min(distances.values()) >= 11, min(distances, key=distances.get)


def contrast(a, b):
    high, low = sorted((float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_text_and_marks():
    from inscape.runs.theme import INK, MUTED, PAPER

    for text in (INK, MUTED):
        assert contrast(text, PAPER) >= 4.5
        assert contrast(DARK[text], DARK[PAPER]) >= 4.5
    for mark in PALETTE:
        assert contrast(mark, PAPER) >= 2.5
        assert contrast(DARK[mark], DARK[PAPER]) >= 3
    for mark in RAMP:
        assert contrast(mark, PAPER) >= 2.2
        assert contrast(mark, DARK[PAPER]) >= 2.2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (float("nan"), "NaN"), (True, "yes"), (1902, "1902"), (-44, "−44"), (0.0, "0"), (0.90612, "0.906"),
        (41.25, "41.25"), (1234.56, "1235"), (80296123, "80\u202f296\u202f123"), (3.14e-7, "3.1 × 10⁻⁷"),
        (0.00042, "0.00042"), (-0.0004, "−0.00040"), (4.66e9, "4.7 × 10⁹"), (-0.01, "−0.010"), ("44 BC", "44 BC"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert format_number(value) == text


def test_columns_line_up_and_nothing_is_rounded_to_nothing():
    assert format_column([1.5, 22.25, None, float("nan")]) == ["1.50", "22.25", "–", "NaN"]
    assert format_column([1902.0, -44.0]) == ["1902", "−44"]
    assert format_column([1, 12345]) == ["1", "12\u202f345"]
    assert format_column([1203.25, 0.0042]) == ["1203.2", "0.0042"]
    assert format_column([-0.0001, 0.5]) == ["−0.00010", "0.500"]
    assert format_interval(-0.01, 0.9) == "[−0.010, 0.900]"
    assert format_interval(None, 0.9) == ""


def test_opens_in_a_browser(folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr", "--window-size=500,900", "--virtual-time-budget=15000", "--dump-dom",
        f"file://{folder / 'report.html'}",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert shown.stdout.count('class="chart drawn"') == 2, shown.stderr[-2000:]
    assert "CONSOLE" not in shown.stderr, shown.stderr
    assert "<title>owned" not in shown.stdout
