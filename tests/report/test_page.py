"""The report in a real browser: the slider repaints, sorting sorts, nothing is logged as an error."""

import base64
import io
import json
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from anomdino.evaluation.summary import CITYSCAPES
from anomdino.io.boxes import Boxes
from anomdino.report.build import _false_positive_table, _span
from anomdino.report.curves import Curve, curve_svg
from anomdino.report.page import EMBEDDED_LIMIT, Column, ImageEntry, ReportWriter, Table
from anomdino.report.published import published_for
from anomdino.viz.overlay import ScoreRange

HEIGHT, WIDTH = 24, 40


def entries(count, clean=()):
    rng = np.random.default_rng(0)
    for index in range(count):
        truth = np.zeros((HEIGHT, WIDTH), np.uint8)
        truth[:3] = 255
        if index not in clean:
            truth[10:16, 8:20] = 1
        score = np.linspace(0, 1, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, 0)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[12:14, 4 : 12 + index % 5] = True
        yield ImageEntry(
            benchmark=["track", "road"][index % 2],
            key=f"</script><b>{index:03d}",
            image=rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
            score=score,
            mask=mask,
            truth=truth,
            boxes=Boxes(np.array([[4, 4, 20, 20]]), np.array([0.75])),
            span=ScoreRange(0, 1),
            ap=None if index in clean else round(1 - 0.1 * index % 1, 3),
            missed=index % 3,
            false=index % 2,
            components=0 if index in clean else 3,
        )


def write(folder, count, clean=()):
    writer = ReportWriter(folder, count)
    for entry in entries(count, clean):
        writer.add(entry)
    table = Table(
        "track",
        [Column("ap", "AP"), Column("fpr95", "FPR95", "low")],
        {"raw": {"ap": 0.5, "fpr95": None}, "fused": {"ap": 0.75, "fpr95": 0.1}},
        intervals={"fused": {"ap": (0.7, 0.8)}},
        reasons={"raw": {"fpr95": "one class only"}},
        published=published_for({"smiyc_anomaly_track"}),
    )
    svg = curve_svg("ROC", {"raw": Curve([0.1, 1], [0.5, 1])}, "FPR", "TPR", x_log=True)
    return writer.finish("Demo", {"seed": 0}, [table], [svg])


def test_page_is_self_contained_and_the_same_twice(tmp_path):
    first = write(tmp_path / "a", 3).read_bytes()
    assert write(tmp_path / "b", 3).read_bytes() == first
    page = first.decode()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "https://" not in page
    assert 'class="best">75.00' in page
    assert 'title="one class only"' in page
    assert "94.75" in page
    assert "70.00 .. 80.00" in page


def test_the_best_of_equal_values_is_not_set_in_bold(tmp_path):
    columns = [Column("x", "x"), Column("y", "y", "low", 1, 0)]
    rows = {"raw": {"x": 1.0, "y": 0}, "fused": {"x": 0.999999, "y": 0}, "mask": {"x": None, "y": 0}}
    page = ReportWriter(tmp_path, 0).finish("Demo", {}, [Table("a", columns, rows)], [])
    assert 'class="best"' not in page.read_text()


def test_the_lowest_is_the_best_where_low_is_better(tmp_path):
    columns = [Column("x", "x", "high"), Column("y", "y", "low"), Column("z", "z", "none")]
    rows = {"raw": {"x": 0.1, "y": 0.2, "z": 0.3}, "fused": {"x": 0.4, "y": 0.5, "z": 0.6}}
    page = ReportWriter(tmp_path, 0).finish("Demo", {}, [Table("a", columns, rows)], []).read_text()
    assert re.findall(r'class="best">([\d.]+)', page) == ["20.00", "40.00"]


def test_all_that_are_printed_as_the_best_are_set_in_bold(tmp_path):
    rows = {"raw": {"x": 0.91234}, "hard": {"x": 0.91229}, "fused": {"x": 0.9}}
    page = (
        ReportWriter(tmp_path, 0).finish("Demo", {}, [Table("a", [Column("x", "x")], rows)], []).read_text()
    )
    assert (page.count('class="best">91.23'), page.count('class="best"')) == (2, 2)


def test_classes_that_are_equally_frequent_stand_in_the_order_of_their_names():
    """In the order of a set the page differed from run to run."""
    counts = np.ones(19, np.int64)
    counts[CITYSCAPES.index("wall")] = 2
    result = SimpleNamespace(benchmark=SimpleNamespace(name="x"), false_positive_classes={"raw": counts})
    table = _false_positive_table(result)
    shown = [column.name for column in table.columns]
    assert shown == ["wall", *sorted({*CITYSCAPES} - {"wall"})[:7]]
    assert table.rows["raw"]["wall"] == pytest.approx(2 / 20)


def test_one_range_holds_the_scores_of_all_sets():
    rows = [[{"score_min": 0.2, "score_max": 0.5}, {"score_min": 0.3, "score_max": 0.9}]]
    rows.append([{"score_min": -1.5, "score_max": 0.4}])
    results = [
        SimpleNamespace(components={}, pixel=["raw", "fused"], rows_of={"fused": one}.get) for one in rows
    ]
    span = _span(results)
    assert (span.low, span.high) == (-1.5, 0.9)


def test_what_the_page_knows_of_an_image(tmp_path):
    (entry,) = entries(1)
    writer = ReportWriter(tmp_path, 1)
    writer.add(replace(entry, span=ScoreRange(-0.5, 2)))
    page = writer.finish("Demo", {}, [], []).read_text()
    (record,) = json.loads(
        page.split('<script id="entries" type="application/json">')[1].split("</script>")[0]
    )
    assert (record["aspect"], record["range"]) == (f"{WIDTH} / {HEIGHT}", [-0.5, 2])
    assert record["boxes"] == [
        [0.1, pytest.approx(4 / 24, abs=1e-4), 0.5, pytest.approx(20 / 24, abs=1e-4), 0.75]
    ]
    score, marks = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(record["pictures"][kind].split(",")[1]))))
        for kind in ("score", "marks")
    )
    np.testing.assert_allclose(score / 255 * 2.5 - 0.5, entry.score, atol=0.005)
    np.testing.assert_array_equal((marks & 1) > 0, entry.mask)
    np.testing.assert_array_equal((marks & 2) > 0, entry.truth == 1)
    np.testing.assert_array_equal((marks & 4) > 0, entry.truth == 255)


def test_curves_have_the_ink_of_the_page_and_say_what_they_are():
    drawn = curve_svg('a "b": ROC', {"raw": Curve([0.1, 1], [0.5, 1])}, "FPR", "TPR")
    assert drawn.startswith('<svg role="img" aria-label="a &quot;b&quot;: ROC: TPR against FPR" ')
    assert "currentColor" in drawn
    assert "#808890" not in drawn


def one_image(key, truth):
    shape = truth.shape
    return ImageEntry(
        *("road", key, np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32), np.zeros(shape, bool)),
        *(truth, Boxes.empty(), ScoreRange(0, 1)),
    )


def test_photos_have_their_colours(tmp_path):
    entry = replace(
        one_image("a", np.zeros((8, 8), np.uint8)), image=np.full((8, 8, 3), (200, 60, 20), np.uint8)
    )
    writer = ReportWriter(tmp_path, 1)
    writer.add(entry)
    page = writer.finish("Demo", {}, [], []).read_text()
    (photo,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(photo))))
    np.testing.assert_allclose(shown[4, 4].astype(int), (200, 60, 20), atol=6)


def test_small_things_of_a_large_photo_are_in_the_page(tmp_path):
    truth = np.zeros((30, 2160), np.uint8)
    truth[:, ::9] = 255
    truth[10, 1000], truth[11, 1001] = 1, 1
    mask = np.zeros((30, 2160), bool)
    mask[20, 1300] = True
    writer = ReportWriter(tmp_path, 1)
    writer.add(replace(one_image("a", truth), mask=mask))
    page = writer.finish("Demo", {}, [], []).read_text()
    content = re.findall(r'"marks": "data:image/png;base64,([^"]+)', page)[0]
    marks = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert marks.shape == (10, 720)
    assert [*zip(*np.nonzero(marks & 2), strict=True)] == [(3, 333)]
    assert [*zip(*np.nonzero(marks & 1), strict=True)] == [(6, 433)]
    assert not ((marks & 4) > 0)[3, 333]


@pytest.mark.parametrize("key", ["a <!--<script>", "b </script><b>", "c <img src=x>"])
def test_names_cannot_end_or_swallow_the_data_of_the_page(tmp_path, key):
    """An HTML parser that knows the states of a script's text: `<!--<script>` lets it run on to the page's end."""
    writer = ReportWriter(tmp_path / "r", 1)
    writer.add(one_image(key, np.zeros((8, 8), np.uint8)))
    page = writer.finish("Demo", {}, [], []).read_text()
    start = page.index(">", page.index('<script id="entries"')) + 1
    data = page[start : page.index("</script", start)]
    assert "<" not in data
    assert [entry["key"] for entry in json.loads(data)] == [key]


def test_an_image_says_why_it_has_no_ap(tmp_path):
    writer = ReportWriter(tmp_path / "r", 3)
    anomaly = np.ones((8, 8), np.uint8)
    anomaly[0] = 255
    for key, truth in (("all", anomaly), ("none", np.zeros((8, 8), np.uint8))):
        writer.add(one_image(key, truth))
    page = writer.finish("Demo", {}, [], []).read_text()
    data = page.split('<script id="entries" type="application/json">')[1].split("</script>")[0]
    reasons = {entry["key"]: entry["facts"]["ap_reason"] for entry in json.loads(data)}
    assert reasons == {"all": "no in-distribution pixel", "none": "no anomaly"}


def test_the_false_area_is_a_share_of_what_is_not_void(tmp_path):
    writer, truth = ReportWriter(tmp_path, 1), np.zeros((8, 8), np.uint8)
    truth[0], truth[1] = 255, 1
    writer.add(replace(one_image("a", truth), mask=np.ones((8, 8), bool)))
    page = writer.finish("Demo", {}, [], []).read_text()
    assert f'"false_area": {48 / 56:.6f}' in page


def test_many_images_lie_beside_the_page(tmp_path):
    page = write(tmp_path / "r", EMBEDDED_LIMIT + 1)
    assert len(list((tmp_path / "r" / "images").glob("*.js"))) == EMBEDDED_LIMIT + 1
    assert page.stat().st_size < 400_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(
            "no chromium and chromedriver here; `apt-get install chromium chromium-driver` installs them"
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage"
        " --disable-background-networking --disable-component-update --disable-sync --window-size=1300,1000"
    ).split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    session.set_page_load_timeout(60)
    yield session
    session.quit()


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.05)


def painted(browser, index=0):
    return browser.execute_script(
        "return document.querySelectorAll('.card canvas')[arguments[0]].dataset.painted", index
    )


def choose(browser, control, value):
    browser.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event('change')); c.dispatchEvent(new Event('input'));",
        control,
        value,
    )


def keys(browser):
    return [card.get_attribute("data-key") for card in browser.find_elements("css selector", ".card")]


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, EMBEDDED_LIMIT + 1])
def test_in_a_browser(browser, tmp_path, count):
    page = write(tmp_path / "r", count, clean={1})
    everything = list(entries(count, clean={1}))
    browser.get(page.as_uri())
    wait_for(lambda: painted(browser) is not None)
    valid = everything[0].truth != 255
    assert int(painted(browser)) == int((everything[0].mask & valid).sum())

    for level in (64, 200):
        choose(browser, "threshold", level)
        expected = int(((np.round(everything[0].score * 255) >= level) & valid).sum())
        wait_for(lambda expected=expected: painted(browser) == str(expected))

    choose(browser, "sort", "missed")
    by_key = {entry.key: entry for entry in everything}
    missed = [by_key[key].missed for key in keys(browser)]
    assert len(missed) == count
    assert missed == sorted(missed, reverse=True)
    choose(browser, "sort", "ap")
    ap = [by_key[key].ap if by_key[key].ap is not None else 2 for key in keys(browser)]
    assert ap == sorted(ap)
    choose(browser, "filter", "clean")
    assert keys(browser) == [everything[1].key]
    for kind in ("missed", "false"):
        choose(browser, "filter", kind)
        assert set(keys(browser)) == {entry.key for entry in everything if getattr(entry, kind)}
    choose(browser, "filter", "")
    choose(browser, "set", "road")
    assert len(keys(browser)) == count // 2

    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.execute_script("document.activeElement.blur()")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ENTER).perform()
    wait_for(lambda: browser.execute_script("return document.getElementById('viewer').open"))
    first = browser.find_element("id", "viewer-title").text
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    wait_for(lambda: browser.find_element("id", "viewer-title").text != first)
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    wait_for(lambda: not browser.execute_script("return document.getElementById('viewer').open"))
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


@pytest.mark.slow
def test_a_box_is_drawn_where_it_is(browser, tmp_path):
    browser.get(write(tmp_path / "r", 1).as_uri())

    def pixels():
        script = (
            "const c = document.querySelector('.card canvas');"
            "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        )
        return np.array(browser.execute_script(script))

    wait_for(lambda: painted(browser) is not None and pixels().size == HEIGHT * WIDTH * 4)
    with_box = pixels()
    browser.find_element("css selector", "[data-layer=boxes]").click()
    wait_for(lambda: not np.array_equal(pixels(), with_box))
    changed = (pixels() != with_box).reshape(HEIGHT, WIDTH, 4).any(axis=2)
    assert np.flatnonzero(changed.any(axis=1)).max() in {19, 20}
    assert np.flatnonzero(changed[18]).tolist() == [3, 4, 19, 20]


@pytest.mark.slow
def test_dark_and_narrow(browser, tmp_path):
    browser.get(write(tmp_path / "r", 3).as_uri())

    def paper():
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(",")) / 3

    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert paper() < 60
    browser.find_element("id", "theme").click()
    assert paper() > 200
    browser.find_element("id", "theme").click()
    assert paper() < 60
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    size = {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 380
        widest = "return Math.max(...[...document.querySelectorAll('.scroll')].map((e) => e.offsetWidth))"
        assert browser.execute_script(widest) <= 380
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
