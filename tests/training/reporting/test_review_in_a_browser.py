"""The pages of a review in Chromium: what is left out there is replaced, and what is answered is scored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from browsers import assert_readable, needs_browser, open_browser, show_as, wait_for

from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.distillation import distilled_set, select
from histodistill.training.distillation.select import SelectConfig
from histodistill.training.reporting import review
from histodistill.training.reporting.review import ReviewConfig
from histodistill.training.running.files import read_json


pytestmark = needs_browser
# What a browser does that keeps nothing for files.
KEEPS_NOTHING = "Storage.prototype.setItem = () => { throw new Error('none'); }; Storage.prototype.getItem = () => '{'"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def browser(driver, tmp_path):
    """It has seen no page yet, and saves into `tmp_path / "saved"`."""
    driver.get("about:blank")
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "file://", "storageTypes": "all"})
    for log in ("browser", "performance"):
        driver.get_log(log)
    saved = tmp_path / "saved"
    saved.mkdir()
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(saved)})
    return driver


def save(browser, folder):
    """Presses the button as the keyboard does, and returns the file that is then there."""
    browser.find_element("id", "save").send_keys("\n")
    return wait_for(browser, lambda: next(folder.glob("*.json"), None))


def told(browser):
    return browser.find_element("id", "told").text


def assert_quiet(browser):
    """Nothing was asked for but the page itself, and nothing was refused or went wrong."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (320, "dark")])
def test_what_is_left_out_is_replaced(
    browser, reviewed_run, tiny_pool, tiny_teacher, tmp_path, monkeypatch, width, colours
):
    for picture in ("community_map", "community_tiles"):
        monkeypatch.setattr(distilled_set, picture, lambda *_: None)
    before = read_image_dataset(reviewed_run / "distilled")[1]["seed"]
    address = review.run(ReviewConfig(run=reviewed_run)).as_uri()
    show_as(browser, width, colours)
    browser.get(address)
    assert told(browser) == "0 of 15 left out, 0 with a note."
    assert_readable(browser)

    # With the keyboard alone: space checks a box, tab goes to the note.
    sign = browser.find_element("name", "reviewer")
    sign.send_keys("AB")
    for row in (0, 1, 7):
        browser.find_element("name", f"out-{row}").send_keys(" ")
    note = browser.find_element("name", "note-4")
    browser.execute_script("arguments[0].focus()", browser.find_element("name", "out-4"))
    browser.switch_to.active_element.send_keys("\t")
    assert browser.switch_to.active_element == note
    note.send_keys('nuclei < 5 µm & "odd"')
    assert told(browser) == "3 of 15 left out, 1 with a note."
    assert_readable(browser)

    # A reload loses nothing; nor does the page of the same set when it is written again.
    review.run(ReviewConfig(run=reviewed_run))
    browser.refresh()
    assert told(browser) == "3 of 15 left out, 1 with a note."
    assert browser.find_element("name", "note-4").get_attribute("value") == 'nuclei < 5 µm & "odd"'

    # HTML is refused before it is saved.
    other = browser.find_element("name", "note-9")
    other.send_keys("<b>no</b>")
    browser.find_element("id", "save").click()
    assert "Not saved: a text holds HTML." in told(browser) and browser.switch_to.active_element == other
    assert not list((tmp_path / "saved").iterdir())
    other.clear()

    path = save(browser, tmp_path / "saved")
    saved = read_json(path)
    assert path.name == f"review-{saved['set'][:8]}.json" and f"Saved as {path.name}." in told(browser)
    assert saved["reviewer"] == "AB" and saved["seeds"] == before.tolist()
    assert [gone["row"] for gone in saved["left_out"]] == [0, 1, 7]
    assert saved["notes"] == [{"row": 4, "note": 'nuclei < 5 µm & "odd"'}]
    assert_quiet(browser)

    options = {"pool": tiny_pool, "teacher": tiny_teacher, "n_per_class": 3, "output": reviewed_run}
    select.run(SelectConfig(**options, exclude=(path,)))
    after = read_image_dataset(reviewed_run / "distilled")[1]["seed"]
    assert len({*after}) == 15 and not np.isin(before[[0, 1, 7]], after).any()
    # The page of the new set begins anew.
    browser.get(review.run(ReviewConfig(run=reviewed_run)).as_uri())
    assert told(browser) == "0 of 15 left out, 0 with a note."


def test_a_browser_that_keeps_nothing_saves_all_the_same(browser, reviewed_run, tmp_path):
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": KEEPS_NOTHING})
    try:
        browser.get(review.run(ReviewConfig(run=reviewed_run)).as_uri())
        # A click on an image is one on its box.
        browser.find_element("css selector", "[data-row='2'] img").click()
        assert (
            told(browser)
            == "1 of 15 left out, 0 with a note. This browser keeps nothing: save before you close the page."
        )
        saved = read_json(save(browser, tmp_path / "saved"))
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert [gone["row"] for gone in saved["left_out"]] == [2] and saved["notes"] == []


def test_a_script_that_is_not_the_pages_own_does_not_run(browser, reviewed_run):
    path = review.run(ReviewConfig(run=reviewed_run))
    text = path.read_text().replace(
        "</main>", "<img src=x onerror='window.ran=1'><script>window.ran=1</script></main>"
    )
    path.write_text(text)
    browser.get(path.as_uri())
    assert told(browser) == "0 of 15 left out, 0 with a note."  # its own does
    assert browser.execute_script("return window.ran ?? 0") == 0
    assert [entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]]


def test_answers_to_the_sheet_are_scored(browser, reviewed_run, tiny_npz, tmp_path):
    review.run(ReviewConfig(run=reviewed_run, data=tiny_npz, per_class=1, seed=3))
    kinds = read_json(reviewed_run / "review" / "blinded_key.json")["kinds"]
    show_as(browser, 320, "light")
    browser.get((reviewed_run / "review" / "blinded.html").as_uri())
    assert told(browser) == "0 of 10 answered."
    assert_readable(browser)
    for number, kind in enumerate(kinds[:8]):
        # Two of them wrong; arrows go from one answer to the other.
        said = kind if number > 1 else {"real": "generated", "generated": "real"}[kind]
        first = browser.find_element("css selector", f"[name=answer-{number}][value=real]")
        first.send_keys(" ")
        if said == "generated":
            first.send_keys("\ue014")  # the right arrow
    assert told(browser) == "8 of 10 answered."
    browser.refresh()
    assert told(browser) == "8 of 10 answered."
    scores = read_json(review.run(ReviewConfig(run=reviewed_run, answers=(save(browser, tmp_path / "saved"),))))
    assert scores["num_answers"] == 8 and scores["all"]["value"] == 0.75
    assert_quiet(browser)
