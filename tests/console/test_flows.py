"""What people do with the console, in a real browser."""

import csv
import gzip
import json
import re
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from lengthwise.settings import bundled_models
from tests.console.browser import EXAMPLE, Window, answered, at, console, dragged, pasted
from tests.support.server_process import ServerProcess, started
from tests.support.streaming_models import gru, place

pytestmark = [pytest.mark.console, pytest.mark.process]

ANSWER = {"label": "1", "score": 0.6, "probabilities": [0.6, 0.4], "length": 3}
KEY = "a-key-of-sixteen-or-more"


def test_the_page_begins_with_an_answered_example(page: Any) -> None:
    assert page.locator(".bars .number").count() == 9
    assert page.locator("#signal path.line").count() == 12
    page.locator("#signal rect.attention").first.wait_for()
    assert page.locator("#version").input_value() == "2"
    assert "recording" in page.locator("#sequence-note").inner_text()
    assert "the data says: " in page.locator(".answer .facts").inner_text()
    seen = {page.locator("#sequence-note").inner_text()}
    page.click("#invent")
    page.locator("#sequence-note", has_text="recording").wait_for()
    assert page.locator("#sequence-note").inner_text() not in seen
    page.locator("#strip-legend", has_text="largest is").wait_for()


def test_recordings_that_are_pasted_are_answered_as_in_the_readme(window: Window) -> None:
    page = window.open()
    pasted(page, EXAMPLE.read_text())
    page.locator(".answer .label", has_text="probability 0.9997").wait_for()
    assert page.locator("#choice").is_visible()
    page.select_option("#chosen", "2")
    page.locator(".answer .label", has_text="probability 0.9999").wait_for()
    assert page.locator(".answer .label").inner_text().startswith("6")
    assert "24 steps" in page.locator("#sequence-note").inner_text()


@pytest.mark.parametrize(
    "text", ["{", "1,2\n3", "1e400,2", "[[1e400, 2]]", '[[1, "x"]]', "one two", "", '{"sequences": []}']
)
def test_what_is_pasted_wrong_is_told_and_the_sequence_stays(window: Window, text: str) -> None:
    page = window.open()
    before = page.locator("#length").input_value()
    pasted(page, text)
    page.locator("#sequence-note.problem").wait_for()
    assert "undefined" not in page.locator("#sequence-note").inner_text()
    assert page.locator("#length").input_value() == before
    page.locator("#signal.stale").wait_for()
    assert page.locator(".answer").count() == 0
    page.click("#ask")
    page.locator(".answer .label").wait_for()


@pytest.mark.parametrize(
    ("text", "steps"),
    [("1,,2\n3,4,5", [[1, None, 2], [3, 4, 5]]), ("1; ;2", [[1, None, 2]]), ("1  2\n3 4", [[1, 2], [3, 4]])],
)
def test_an_empty_cell_is_a_missing_value(window: Window, text: str, steps: list[Any]) -> None:
    features = len(steps[0])
    page = imagined(window, {"features": features, "labels": ["1", "2"]}, ANSWER)
    pasted(page, text)
    page.locator("#sequence-note", has_text=f"{len(steps)} step").wait_for()
    assert json.dumps(steps, separators=(",", ":")) in page.locator("#code").inner_text()


def test_steps_are_left_out_by_a_click_or_a_drag_and_come_back_by_another_click(page: Any) -> None:
    page.mouse.click(*at(page, 0.5, 80))
    page.locator(".answer .facts li", has_text="1 left out").wait_for()
    assert "1 left out" in page.locator("#sequence-note").inner_text()
    page.mouse.click(*at(page, 0.5, 80))
    page.locator("#sequence-note", has_not_text="left out").wait_for()
    dragged(page, (0.4, 80), (0.8, 80))
    said = page.locator("#sequence-note").inner_text()
    assert int(said.split(" left out")[0].split("· ")[-1]) > 2


def test_everything_at_the_picture_can_be_done_with_keys(page: Any) -> None:
    signal = page.locator("#signal")
    signal.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert signal.get_attribute("aria-valuetext").startswith("step 2 of")
    before = signal.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowUp")
    assert signal.get_attribute("aria-valuetext") != before
    page.keyboard.press("Space")
    assert "left out" in signal.get_attribute("aria-valuetext")
    page.keyboard.press("Space")
    page.keyboard.press("Delete")
    page.locator(".answer .problem").wait_for()  # the model refuses missing values
    assert "1 value missing, which this model refuses" in page.locator("#sequence-note").inner_text()
    assert "step 2, feature 0" in page.locator(".answer .facts").inner_text()


def test_a_curve_is_drawn_with_the_pointer(page: Any) -> None:
    page.select_option("#drawn", "3")
    before = page.locator("#signal path.line").nth(3).get_attribute("d")
    dragged(page, (0.2, 40), (0.9, 150))
    assert page.locator("#signal path.line").nth(3).get_attribute("d") != before
    assert "left out" not in page.locator("#sequence-note").inner_text()


def test_a_line_is_highlighted_under_the_pointer_and_masked_by_its_button(page: Any) -> None:
    page.mouse.move(*at(page, 0.5, 60))
    page.locator("#signal .one .line.near").wait_for()
    assert page.locator("#near").inner_text().startswith("feature ")
    page.locator("#features button").nth(4).hover()
    assert page.locator("#signal .line.near").get_attribute("data-feature") == "4"
    page.locator("#features button").first.click()
    page.locator(".answer .problem").wait_for()
    assert page.locator("#features button").first.get_attribute("aria-pressed") == "true"


def test_files_are_read(window: Window, tmp_path: Path) -> None:
    steps = json.loads(EXAMPLE.read_text())["sequences"][0]
    steps = steps["steps"] if isinstance(steps, dict) else steps
    (tmp_path / "a.csv").write_text("\n".join(",".join(map(str, step)) for step in steps))
    lines = [json.dumps({"id": name, "steps": steps, "label": "1"}) for name in ("first", "second")]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    columns = ":".join(",".join(str(step[feature]) for step in steps) for feature in range(12))
    (tmp_path / "c.ts").write_text(f"@classLabel true 1\n@data\n{columns}:1\n")
    (tmp_path / "d.json").write_text(EXAMPLE.read_text())
    page = window.open()
    for name, choices in (("a.csv", 0), ("b.jsonl", 2), ("c.ts", 0), ("d.json", 3)):
        page.click("#invent")
        page.set_input_files("#file", tmp_path / name)
        page.locator("#sequence-note", has_text=f"{len(steps)} steps").wait_for()
        page.locator(".answer .label", has_text="probability 0.9997").wait_for()
        assert page.locator("#choice").is_visible() == bool(choices)
    (tmp_path / "e.csv").write_text("1,x\n2,y\n")
    page.set_input_files("#file", tmp_path / "e.csv")
    page.locator("#sequence-note.problem", has_text="and no numbers").wait_for()


@pytest.mark.parametrize("added", ["padding", "junk", "neighbours"])
def test_the_slider_shows_that_the_answer_stays(window: Window, added: str) -> None:
    page = window.open()
    page.check(f"input[name=added][value={added}]", force=True)
    page.click("#sweep")
    page.locator("#padding-verdict.good", has_text="1, 2, 4, 8, 16, 32, 48, 63").wait_for()
    assert "same to the last digit" in page.locator("#padding-verdict").inner_text()
    assert page.locator("#padding-picture circle").count() == 9
    assert page.locator("#padding-picture circle.moved").count() == 0
    page.click("#invent")
    page.locator("#padding-verdict.good", has_text="with 1, 16, 63 ").wait_for()  # again by itself


def test_the_slider_tells_an_answer_that_moves(window: Window) -> None:
    page = window.page

    def leak(route: Any) -> None:
        answer = route.fetch()
        document = answer.json()
        document["predictions"][0]["probabilities"][0] += 1e-7 * route.request.post_data.count("false")
        route.fulfill(response=answer, json=document)

    page.route("**/predict", leak)
    window.open()
    page.click("#sweep")
    page.locator("#padding-verdict.bad", has_text="a probability moves by").wait_for()


def test_two_versions_stand_side_by_side(window: Window) -> None:
    page = window.open()
    assert page.locator("#other option").all_text_contents() == ["nothing", "japanese-vowels 1"]
    page.select_option("#other", "japanese-vowels/1")
    page.locator(".answer").nth(1).wait_for()
    page.locator(".answer .facts li", has_text="the same digits as the other version").wait_for()
    assert [each.inner_text() for each in page.locator(".answer h3").all()] == [
        "japanese-vowels, version 2",
        "japanese-vowels, version 1",
    ]


def test_the_copied_calls_give_the_answer_of_the_page(page: Any) -> None:
    seen = page.locator(".bars .number").all_inner_texts()
    page.click("#copy-curl")
    page.locator("#copied", has_text="Copied as curl").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    (prediction,) = json.loads(said.stdout)["predictions"]
    assert [float(each) for each in seen] == pytest.approx(prediction["probabilities"], rel=0.06, abs=1e-4)
    page.click("#copy-python")
    page.locator("#copied", has_text="Copied as Python").wait_for()
    program = page.evaluate("navigator.clipboard.readText()")
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert prediction["label"] in said.stdout
    assert "lengthwise.Client" in page.locator("#code").inner_text()
    page.click("#invent")
    page.wait_for_function("document.querySelector('#copied').textContent === ''")


def test_batches_are_seen_as_they_run(window: Window) -> None:
    page = window.open("live")
    page.locator("#live-state", has_text="live").wait_for()
    page.click("#burst")
    page.locator("#burst-note", has_text="100 sequences of").wait_for()
    page.wait_for_function("document.querySelector('#figures dd').textContent.replace(/\\D/g, '') > 0")
    page.wait_for_function("document.querySelector('#batches').getAttribute('aria-label').includes('the newest has')")
    assert "batches; half of them" in page.locator("#costs").get_attribute("aria-label")
    assert "runner-0" in page.locator("#runners").get_attribute("aria-label")
    page.click("#pause")
    page.locator("#live-state", has_text="paused").wait_for()


def test_the_figures_of_a_burst_stay_and_say_how_old_they_are(window: Window) -> None:
    page = window.open("live")
    page.locator("#live-state", has_text="live").wait_for()
    page.click("#burst")
    page.locator("#figures-note", has_text="Nothing runs now: these are the figures of").wait_for()
    sequences, batches, rows = page.locator("#figures dd").all_inner_texts()[:3]
    assert all(float(re.sub(r"[^\d.]", "", figure)) > 0 for figure in (sequences, batches, rows))


def test_a_hidden_view_is_closed_and_models_and_refusals_are_listed(window: Window, server: ServerProcess) -> None:
    page = window.open("live")
    page.locator("#live-state", has_text="live").wait_for()
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/console/live")):
        page.click("#to-models")
    table = page.locator("#served table")
    table.wait_for()
    assert "the same bits in every batch" in table.inner_text()
    assert table.locator("tbody tr").count() == 2
    page.locator("#refused li", has_text="japanese-vowels/3").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("part", ["predict", "live", "models"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing_and_nothing_needs_sideways_scrolling(
    browser: Any, server: ServerProcess, scheme: str, part: str, width: int
) -> None:
    size = {"width": width, "height": 900}
    window = Window(browser, server.url, size, color_scheme=scheme, reduced_motion="reduce")
    page = window.open(part)
    if part == "predict":
        page.locator(".answer .label").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#paste")
        page.click("#sweep")
        page.locator("#padding-verdict.good").wait_for()
        page.locator("#features button").first.click()
        page.locator(".answer .problem").wait_for()
    elif part == "live":
        page.locator("#live-state", has_text="live").wait_for()
    found = window.violations()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    window.close()
    assert found == window.troubles == []


def test_the_colours_can_be_chosen(window: Window) -> None:
    page = window.open()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) == light
    page.click("#theme")
    assert page.evaluate(paper) != light


def test_where_keys_are_set_the_page_asks_for_one_and_forgets_it(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    with console(tmp_path, "--api-keys-file", str(tmp_path / "keys")) as server:
        window = Window(browser, server.url)
        page = window.page
        page.goto(server.url)
        page.locator("#key-dialog[open]").wait_for()
        assert window.violations() == []
        page.fill("#key", "not-the-key-at-all")
        page.keyboard.press("Enter")
        page.locator("#key-note", has_text="Not this one").wait_for()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.locator(".answer .label").wait_for()
        page.click("#to-live")
        page.locator("#live-state", has_text="live").wait_for()
        page.click("#to-predict")
        assert "$LENGTHWISE_KEY" in page.locator("#code").inner_text()
        assert KEY not in page.content()
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert KEY not in kept
        page.reload()
        page.locator("#key-dialog[open]").wait_for()
        window.close()
        assert window.troubles == []


def test_a_server_that_ends_is_told(browser: Any, tmp_path: Path) -> None:
    with console(tmp_path) as server:
        window = Window(browser, server.url)
        page = window.open("live")
        page.locator("#live-state", has_text="live").wait_for()
        server.terminate()
        assert server.end() == 0
        page.locator("#trouble", has_text="does not answer").wait_for()
        assert page.locator("#status").inner_text() == "no answer"
        window.close()


def imagined(window: Window, model: dict[str, Any], prediction: dict[str, Any]) -> Any:
    """The page of a service whose model has another task: its answers are written here."""

    def state(route: Any) -> None:
        answer = route.fetch()
        document = answer.json()
        document["models"] = [document["models"][0] | {"mean": None, "std": None, "names": None, "examples": 0} | model]
        route.fulfill(response=answer, json=document)

    def predict(route: Any) -> None:
        sent = json.loads(route.request.post_data)
        document = {"model": sent["model"], "version": sent["version"], "labels": model["labels"]}
        route.fulfill(json=document | {"predictions": [prediction] * len(sent["sequences"])})

    window.page.route("**/console/state", state)
    window.page.route("**/predict", predict)
    return answered(window)


def centre(page: Any, place: str) -> tuple[float, float]:
    """The middle of an element, which is scrolled to."""
    page.locator(place).scroll_into_view_if_needed()
    box = page.locator(place).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_an_answer_to_an_earlier_sequence_is_not_shown(page: Any, window: Window) -> None:
    held: list[Any] = []

    def hold(route: Any) -> None:
        if "step_mask" in route.request.post_data:  # the same with padding
            route.continue_()
        else:
            held.append(route)

    page.route("**/predict", hold)

    def answer(number: int) -> None:
        for _ in range(3000):
            if len(held) > number:
                break
            page.wait_for_timeout(10)
        held[number].continue_()

    page.click("#ask")
    page.click("#fewer")  # the answer that comes first is of one step more
    steps = int(page.locator("#length").input_value())
    answer(0)
    weights = page.wait_for_function(
        """() => {
            const count = document.querySelectorAll("#signal rect.attention").length;
            window.most = Math.max(window.most ?? 0, count);
            return window.performance.now() > (window.until ??= window.performance.now() + 200) && {most: window.most};
        }"""
    ).json_value()
    answer(1)
    page.locator(".answer .facts li", has_text=f"{steps} steps computed").wait_for()
    assert weights["most"] in (0, steps)


def test_without_a_model_the_page_says_so(window: Window) -> None:
    page = window.page

    def state(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"models": [], "reason": "no version is good"})

    page.route("**/console/state", state)
    window.open()
    page.locator("#sequence-note.problem", has_text="No model is served now").wait_for()
    for button in ("#fewer", "#more", "#copy-curl", "#sweep", "#ask"):
        page.mouse.click(*centre(page, button))
    page.click("#to-live")
    page.locator("#burst:disabled").wait_for()
    page.locator("#burst-note", has_text="No model is served").wait_for()
    page.click("#to-models")
    page.locator("#served", has_text="no version is good").wait_for()


def test_the_keyboard_can_skip_to_the_content(window: Window) -> None:
    page = window.open("models")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("#models-part").is_visible()
    page.reload()
    page.locator("#predict-part").wait_for()


def test_a_file_larger_than_the_server_takes_is_not_sent(window: Window, tmp_path: Path) -> None:
    (tmp_path / "large.csv").write_bytes(b"1,2\n" * 5_000_000)
    page = window.open()
    page.set_input_files("#file", tmp_path / "large.csv")
    page.locator("#sequence-note.problem", has_text="the server takes 16,777,216").wait_for()


def test_a_model_of_several_labels_names_those_that_it_assigns(window: Window) -> None:
    labels = [f"label {number}" for number in range(20)]
    prediction = {"assigned": ["label 3", "label 7"], "probabilities": [0.1] * 3 + [0.9] + [0.1] * 16, "length": 4}
    page = imagined(window, {"task": "multi-label", "labels": labels, "attention": False}, prediction)
    page.locator(".answer .label", has_text="label 3, label 7").wait_for()
    assert page.locator(".bars .number").count() == page.locator(".bars .threshold").count() == 12
    assert "from a probability of 0.5" in page.locator(".answer .facts").inner_text()
    assert "12 most probable of 20" in page.locator("#answers").inner_text()
    assert window.violations() == []


def test_a_model_with_an_answer_for_each_step_shows_them_along_the_steps(window: Window) -> None:
    steps = ["a", "b", None, "b"]
    prediction = {
        "step_labels": steps,
        "step_scores": [0.9, 0.8, None, 0.7],
        "probabilities": [[0.9, 0.1], [0.2, 0.8], None, [0.3, 0.7]],
        "length": 3,
    }
    page = imagined(window, {"task": "per-step", "labels": ["a", "b"], "attention": False}, prediction)
    page.locator(".answer .label", has_text="2 of 3 steps").wait_for()
    assert page.locator("#signal rect.step-label").count() == len(steps)
    assert page.locator("#strip-legend .swatch").all_inner_texts() == ["a", "b"]
    page.click("#sweep")
    page.locator("#padding-verdict.good", has_text="same to the last digit").wait_for()
    assert window.violations() == []


def test_the_labels_of_steps_stand_above_those_that_are_answered_and_widen_nothing(
    window: Window, tmp_path: Path
) -> None:
    labels = ["rest, lying", "walk"] * 150
    prediction = {
        "step_labels": ["rest, lying"] * 300,
        "step_scores": [0.9] * 300,
        "probabilities": [[0.9, 0.1]] * 300,
        "length": 300,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "long", "steps": [[1.0]] * 300, "label": labels}))
    model = {"task": "per-step", "features": 1, "labels": ["rest, lying", "walk"], "attention": False}
    page = imagined(window, model, prediction)
    page.set_input_files("#file", tmp_path / "a.jsonl")
    page.locator(".answer .facts li", has_text="150 of 300 steps as the data says").wait_for()
    true, found = page.locator("#signal rect.true-label"), page.locator("#signal rect.step-label")
    assert true.count() == found.count() == 300
    assert true.nth(1).bounding_box()["y"] < found.nth(1).bounding_box()["y"]
    assert true.nth(0).get_attribute("fill") == found.nth(0).get_attribute("fill")
    assert true.nth(1).get_attribute("fill") != found.nth(1).get_attribute("fill")
    texts = page.locator("#signal text").all_text_contents()
    assert {"true", "answered"} <= set(texts)
    assert "1 feature ·" in page.locator("#sequence-note").inner_text()
    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert window.violations() == []


def test_a_model_without_attention_has_no_strip(window: Window) -> None:
    page = imagined(window, {"features": 2, "labels": ["1", "2"], "attention": False}, ANSWER)
    assert page.locator("#signal rect.strip").count() == 0


def test_a_model_of_tokens_takes_ids(window: Window) -> None:
    prediction = {"label": "a", "score": 0.6, "probabilities": [0.6, 0.4], "length": 3, "attention": [0.2, 0.3, 0.5]}
    model = {"input": "tokens", "features": None, "vocabulary": 100, "labels": ["a", "b"]}
    page = imagined(window, model, prediction)
    page.locator(".answer .label", has_text="a").wait_for()
    pasted(page, "5 17 99")
    page.locator("#sequence-note", has_text="3 steps (tokens)").wait_for()
    assert page.locator("#signal text.token").all_text_contents() == ["5", "17", "99"]
    assert page.locator("#features").is_hidden()
    page.locator("#signal").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert page.locator("#signal text.token").first.text_content() == "6"
    page.click("#sweep")
    page.locator("#padding-verdict.good").wait_for()
    assert window.violations() == []


def test_many_features_are_a_heat_map_that_names_what_is_under_the_pointer(window: Window) -> None:
    names = [f"sensor {number}" for number in range(64)]
    model = {"features": 64, "labels": ["1", "2"], "names": names, "attention": False}
    page = imagined(window, model, ANSWER)
    assert page.locator("#signal path.line").count() == 0
    assert page.locator("#signal image").count() == 1
    assert "made up" in page.locator("#sequence-note").inner_text()
    page.mouse.move(*at(page, 0.5, 100))
    page.locator("#signal .row.near").wait_for()
    assert page.locator("#near").inner_text().startswith("sensor ")
    assert page.locator("#features button").count() == 64
    assert page.locator("#features").is_hidden()  # they would push the answer off a narrow screen
    assert page.locator("#features-sum").inner_text() == "64 features"
    page.click("#features-sum")
    page.locator("#features button").nth(3).click()
    page.locator("#features-sum", has_text="64 features, 1 sent as missing").wait_for()
    assert page.locator("#features").evaluate("each => each.scrollHeight <= each.clientHeight + 1")
    assert window.violations() == []


def test_a_file_gets_a_table_with_its_accuracy_and_a_download(window: Window, tmp_path: Path) -> None:
    lines = (bundled_models() / "japanese-vowels" / "1" / "examples.jsonl").read_text().splitlines() * 15
    wrong = json.loads(lines[0]) | {"id": "wrong", "label": "9"}
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:-1], json.dumps(wrong)]))
    page = window.open()
    page.set_input_files("#file", tmp_path / "a.jsonl")
    page.click("#answer-all")
    page.locator("#file-note", has_text="90 sequences").wait_for()
    assert "89 of 90" in page.locator("#file-note").inner_text()
    assert page.locator("#file-table tbody tr").count() == 90
    with page.expect_download() as downloading:
        page.click("#download")
    rows = Path(downloading.value.path()).read_text().splitlines()
    assert len(rows) == 91
    assert rows[-1].startswith('"wrong"')
    assert window.violations() == []
    page.locator("#file-table button").nth(3).click()
    assert page.locator("#chosen").input_value() == "3"


def test_labels_with_commas_and_of_many_steps_are_compared_and_downloaded(window: Window, tmp_path: Path) -> None:
    labels = ["rest, lying", "walk"] * 50
    prediction = {
        "step_labels": [*labels[:-1], "rest, lying"],
        "step_scores": [0.9] * 100,
        "probabilities": [[0.9, 0.1]] * 100,
        "length": 100,
    }
    rows = [f'{name},{step},"{labels[step]}"' for name in ("a", "b") for step in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["id,x,label", *rows]))
    model = {"task": "per-step", "features": 1, "labels": ["rest, lying", "walk"], "attention": False}
    page = imagined(window, model, prediction)
    page.set_input_files("#file", tmp_path / "a.csv")
    page.click("#answer-all")
    page.locator("#file-note", has_text="accuracy 0.9900: 198 of 200 answers").wait_for()
    with page.expect_download() as downloading:
        page.click("#download")
    with Path(downloading.value.path()).open(newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["label"]) == json.loads(second["label"]) == labels
    assert json.loads(first["answer"]) == prediction["step_labels"]
    label, found = (page.locator("#file-table tbody td").nth(column).inner_text() for column in (2, 3))
    assert len(label) <= 80
    assert found.endswith("… (99 of 100)")
    assert page.locator("#file-table .bad-text").count() == 0


PHONE = {"width": 390, "height": 844}


def fits(page: Any, place: str) -> bool:
    """Whether a box shows all of its content without sideways scrolling."""
    return bool(page.locator(place).evaluate("each => each.scrollWidth <= each.clientWidth"))


@pytest.mark.parametrize("task", ["per-step", "single-label"])
def test_the_answers_to_a_file_can_be_read_on_a_phone(window: Window, tmp_path: Path, task: str) -> None:
    labels = ["sitting on the floor", "walking upstairs"] * 20
    per_step = {"step_labels": labels, "step_scores": [0.9] * 40, "probabilities": [[0.9, 0.1]] * 40, "length": 40}
    single = {"label": labels[0], "score": 0.6, "probabilities": [0.6, 0.4], "length": 40}
    rows = [f'recording-{name},{step},"{labels[step * (task == "per-step")]}"' for name in "ab" for step in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["id,x,label", *rows]))
    model = {"task": task, "features": 1, "labels": labels[:2], "attention": False}
    page = imagined(window, model, per_step if task == "per-step" else single)
    page.set_viewport_size(PHONE)
    page.set_input_files("#file", tmp_path / "a.csv")
    page.click("#answer-all")
    page.locator("#file-note", has_text="accuracy 1.0000").wait_for()
    assert fits(page, "#file-part .scroll >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    heads = (
        page.locator("#file-table tbody tr").first.locator("td").evaluate_all("all => all.map((td) => td.dataset.head)")
    )
    assert ("Probability" in heads) == (task == "single-label")
    label = page.locator("#file-table tbody td[data-head=Label]").first
    line = label.evaluate("each => parseFloat(getComputedStyle(each).lineHeight)")
    assert label.bounding_box()["height"] < 4 * line
    assert window.violations() == []


def test_a_confusion_matrix_says_which_labels_are_mistaken_for_which(window: Window, tmp_path: Path) -> None:
    rows = [{"steps": [[1.0]] * 3, "label": label} for label in ("1", "2", "2", "of another model")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    page = imagined(window, {"features": 1, "labels": ["1", "2", "3"]}, ANSWER | {"probabilities": [0.6, 0.3, 0.1]})
    page.set_input_files("#file", tmp_path / "a.json")
    page.click("#answer-all")
    page.locator("#confusion").wait_for()
    lines = [line.split() for line in page.locator("#confusion tr").all_inner_texts()]
    assert lines[0] == ["1", "2", "of", "another", "model"]
    assert lines[1:3] == [["1", "1", "0", "0"], ["2", "2", "0", "0"]]
    assert lines[3][-3:] == ["1", "0", "0"]
    unlabelled = [{"steps": [[1.0]] * 3}] * 2
    (tmp_path / "b.json").write_text(json.dumps(unlabelled))
    page.set_input_files("#file", tmp_path / "b.json")
    page.click("#answer-all")
    page.locator("#file-note", has_text="2 sequences by").wait_for()
    assert page.locator("#confusion").is_hidden()


def test_of_several_labels_of_a_sequence_there_is_no_confusion_matrix(window: Window, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"steps": [[1.0]] * 3, "label": ["1"]}] * 2))
    prediction = {"assigned": ["1"], "probabilities": [0.6, 0.4], "length": 3}
    page = imagined(window, {"features": 1, "labels": ["1", "2"], "task": "multi-label", "threshold": 0.5}, prediction)
    page.set_input_files("#file", tmp_path / "a.json")
    page.click("#answer-all")
    page.locator("#file-note", has_text="2 of 2").wait_for()
    assert page.locator("#confusion").is_hidden()
    assert "Probability" not in page.locator("#file-table thead").inner_text()


def test_a_file_that_is_refused_takes_the_table_and_the_call_of_the_one_before_away(
    window: Window, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"steps": [[1.0]] * 3, "label": "1"}] * 2))
    (tmp_path / "b.exe").write_text("no data")
    page = imagined(window, {"features": 1, "labels": ["1", "2"]}, ANSWER)
    for refused in (lambda: page.set_input_files("#file", tmp_path / "b.exe"), lambda: pasted(page, "no numbers")):
        page.set_input_files("#file", tmp_path / "a.json")
        page.click("#answer-all")
        page.locator("#file-note", has_text="2 of 2").wait_for()
        refused()
        page.locator("#sequence-note.problem").wait_for()
        assert page.locator("#file-part").is_hidden()
        assert page.locator("#choice").is_hidden()
        assert "[1]" not in page.locator("#code").inner_text()
        assert page.locator("#copy-curl").is_disabled()
        page.click("#invent")
        page.locator("#copy-curl:not([disabled])").wait_for()


def test_labels_that_are_numbers_are_their_digits(window: Window, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps([{"steps": [[1.0]] * 3, "label": 1}, {"steps": [[1.0]] * 3, "label": 2}])
    )
    page = imagined(window, {"features": 1, "labels": ["1", "2"]}, ANSWER)
    page.set_input_files("#file", tmp_path / "a.json")
    page.locator(".answer .facts li", has_text="the data says: 1").wait_for()
    page.click("#answer-all")
    page.locator("#file-note", has_text="1 of 2").wait_for()


def test_labels_of_another_kind_than_the_answers_are_not_counted_as_wrong(window: Window, tmp_path: Path) -> None:
    lines = [json.dumps({"steps": [[1.0]] * 3, "label": label}) for label in (["1", "1", "1"], "1")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    page = imagined(window, {"features": 1, "labels": ["1", "2"]}, ANSWER)
    page.set_input_files("#file", tmp_path / "a.jsonl")
    page.click("#answer-all")
    page.locator("#file-note", has_text="1 of 1").wait_for()


def test_another_model_shows_its_own_example_and_no_label_of_the_one_before(window: Window) -> None:
    def state(route: Any) -> None:
        document = route.fetch().json()
        (first, *_) = document["models"]
        events = first | {"model": "events", "version": "7", "task": "per-step", "labels": ["rest", "walk"]}
        route.fulfill(json=document | {"models": [events, first]})

    def examples(route: Any) -> None:
        name = "events" if "model=events" in route.request.url else "vowels"
        label = ["rest", "walk", "walk"] if name == "events" else "1"
        route.fulfill(body=json.dumps({"id": f"of {name}", "steps": [[0.5] * 12] * 3, "label": label}) + "\n")

    def predict(route: Any) -> None:
        of_events = json.loads(route.request.post_data)["model"] == "events"
        of_steps = {
            "step_labels": ["rest"] * 3,
            "step_scores": [0.9] * 3,
            "probabilities": [[0.9, 0.1]] * 3,
            "length": 3,
        }
        labels = ["rest", "walk"] if of_events else ["1", "2"]
        route.fulfill(json={"labels": labels, "predictions": [of_steps if of_events else ANSWER]})

    for path, answers in {"**/console/state": state, "**/console/examples*": examples, "**/predict": predict}.items():
        window.page.route(path, answers)
    page = answered(window)
    note, facts = page.locator("#sequence-note"), page.locator(".answer .facts")
    facts.locator("li", has_text="1 of 3 steps as the data says").wait_for()
    page.select_option("#model", "japanese-vowels")
    facts.locator("li", has_text="the data says: 1").wait_for()
    assert "recording of vowels of the data of japanese-vowels" in note.inner_text()
    page.click("#fewer")
    facts.locator("li", has_text="3 steps computed").wait_for()
    page.locator("#signal").focus()
    page.keyboard.press("ArrowUp")
    page.locator("#sequence-note", has_text="changed").wait_for()
    page.select_option("#model", "events")  # what the user has changed stays, without a label
    page.locator("#answers h3", has_text="events").wait_for()
    assert "the data of japanese-vowels, changed" in note.inner_text()
    assert "the data says" not in facts.inner_text()
    assert page.locator("#signal rect.true-label").count() == 0


def test_the_default_version_is_tried_first_and_its_aliases_are_seen(browser: Any, tmp_path: Path) -> None:
    with console(tmp_path) as server:
        aliases = tmp_path / "models" / "japanese-vowels" / "aliases.json"
        aliases.write_text('{"champion": 1, "candidate": 2}')
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("aliases of japanese-vowels")
        window = Window(browser, server.url)
        page = answered(window)
        assert page.locator("#version").input_value() == "1"
        assert "champion" in page.locator("#version option:checked").inner_text()
        page.click("#to-models")
        assert page.locator("#served .pill").all_inner_texts() == ["candidate", "default", "champion"]
        assert "0.9811" in page.locator("#served").inner_text()
        window.close()
        assert window.troubles == []


def test_the_columns_of_a_table_are_named_and_can_be_chosen(window: Window, tmp_path: Path) -> None:
    rows = [
        f"{name},{step},{step / 10},{other},{label}"
        for name, label in (("a", "1"), ("b", "2"))
        for step, other in ((1, 5), (2, 6))
    ]
    (tmp_path / "long.csv").write_text("\n".join(["id,t,pressure,note,label", *rows]))
    page = imagined(window, {"features": 1, "labels": ["1", "2"]}, ANSWER)
    page.set_input_files("#file", tmp_path / "long.csv")
    page.locator("#sequence-note.problem", has_text="pressure, note").wait_for()
    assert page.locator("#sequence-note").inner_text().count("1 feature a step") == 1
    assert [page.locator(f"#column-{role}").input_value() for role in ("id", "time", "label")] == ["id", "t", "label"]
    page.uncheck("#column-values input[value=note]")
    page.click("#read-again")
    page.locator("#choice-note", has_text="2 sequences").wait_for()
    assert "'pressure'" in page.locator("#taken").inner_text()
    assert page.locator("#features button").all_inner_texts() == ["pressure"]
    assert "[[0.1],[0.2]]" in page.locator("#code").inner_text()
    assert window.violations() == []


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_a_table_that_names_no_sequences_is_asked_about(window: Window, tmp_path: Path, suffix: str) -> None:
    text = "rec,x\na,5\na,6\nb,7\n"
    if suffix == "parquet":
        csv_reader = pytest.importorskip("pyarrow.csv", reason="the extra parquet")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(csv_reader.read_csv(BytesIO(text.encode())), tmp_path / "a.parquet")
    else:
        packed = gzip.compress(text.encode()) if suffix == "csv.gz" else text.encode()
        (tmp_path / f"a.{suffix}").write_bytes(packed)
    page = imagined(window, {"features": 1, "labels": ["1", "2"]}, ANSWER)
    page.set_input_files("#file", tmp_path / f"a.{suffix}")
    page.locator("#sequence-note.problem", has_text="no column names the sequence of a row").wait_for()
    page.select_option("#column-id", "rec")
    page.click("#read-again")
    page.locator("#choice-note", has_text="2 sequences").wait_for()
    assert "id 'rec', feature 'x'" in page.locator("#taken").inner_text()
    page.select_option("#column-id", label="none: one sequence")
    page.uncheck("#column-values input[value=rec]")
    page.click("#read-again")
    page.locator("#sequence-note", has_text="3 steps").wait_for()
    assert "[[5],[6],[7]]" in page.locator("#code").inner_text()


def test_of_a_table_that_is_doubtful_the_header_is_offered(window: Window, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("time,timestamp,x\n1,1,5\n2,2,6\n")
    page = imagined(window, {"features": 1, "labels": ["1", "2"]}, ANSWER)
    page.set_input_files("#file", tmp_path / "two.csv")
    page.locator("#sequence-note.problem", has_text="may each be the time").wait_for()
    page.select_option("#column-time", "time")
    page.check("#column-values input[value=x]")
    page.click("#read-again")
    page.locator("#sequence-note", has_text="2 steps").wait_for()
    assert "[[5],[6]]" in page.locator("#code").inner_text()


def test_one_cause_at_many_steps_is_one_line(page: Any) -> None:
    pasted(page, "\n".join(["1 2"] * 25))
    page.locator(".answer .problem").wait_for()
    assert page.locator(".answer .facts li").count() <= 2


@pytest.mark.parametrize(
    ("prediction", "labels", "right"),
    [
        ({"step_labels": ["a", "b", None]}, [["a", "b", "b"], ["a", "a", "a"]], "3 of 4"),
        ({"assigned": ["a", "b"]}, [["b", "a"], ["a"]], "1 of 2"),
    ],
)
def test_the_accuracy_of_a_file_counts_steps_and_sets(
    window: Window, tmp_path: Path, prediction: dict[str, Any], labels: list[list[str]], right: str
) -> None:
    task = "per-step" if "step_labels" in prediction else "multi-label"
    values = [[0.9, 0.1], [0.2, 0.8], None] if task == "per-step" else [0.9, 0.8]
    answer = {"probabilities": values, "length": 3} | prediction
    lines = [json.dumps({"steps": [[1.0]] * 3, "label": label}) for label in labels]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    page = imagined(window, {"task": task, "features": 1, "labels": ["a", "b"], "attention": False}, answer)
    page.set_input_files("#file", tmp_path / "a.jsonl")
    page.click("#answer-all")
    page.locator("#file-note", has_text=right).wait_for()


@pytest.mark.parametrize(
    ("names", "rows"), [([f"sensor {n}" for n in range(20)], ["sensor 0", "sensor 2"]), (None, ["0", "2"])]
)
def test_the_rows_of_a_heat_map_have_the_names_of_features_or_their_numbers_from_0(
    window: Window, names: list[str] | None, rows: list[str]
) -> None:
    page = imagined(window, {"features": 20, "labels": ["1", "2"], "names": names}, ANSWER)
    assert page.locator("#signal text").all_text_contents()[:2] == rows


def test_pasted_objects_are_read_by_the_names_of_the_model(window: Window) -> None:
    page = imagined(window, {"features": 2, "labels": ["1", "2"], "names": ["ax", "ay"]}, ANSWER)
    assert page.locator("#features button").all_inner_texts() == ["ax", "ay"]
    with page.expect_request("**/predict") as sent:
        pasted(page, '[{"ay": 2, "ax": 1}, {"ax": 3}]')
    assert sent.value.post_data_json["sequences"] == [[[1, 2], [3, None]]]
    pasted(page, '[{"a_y": 2, "ax": 1}]')
    assert "The model has no feature “a_y”. It takes ax, ay." in page.locator("#sequence-note").inner_text()


@pytest.mark.long
def test_a_stream_is_played_and_each_answer_compared_with_the_whole(browser: Any, tmp_path: Path) -> None:
    place(tmp_path / "models", gru)
    with started(str(tmp_path / "models")) as server:
        window = Window(browser, server.url)
        page = answered(window)
        page.fill("#length", "20")
        page.press("#length", "Enter")
        page.select_option("#chunk", "3")
        page.click("#play-stream")
        page.locator(
            "#stream-verdict", has_text="After each of 7 chunks the answer is that to the whole so far"
        ).wait_for()
        assert page.locator("#stream-picture .dot").count() == 7
        page.focus("#cut")
        page.keyboard.press("ArrowRight")
        page.locator("#stream-verdict", has_text="After each of 2 chunks").wait_for()
        assert page.inner_text("#cut-text") == "behind step 2"
        window.close()
        assert window.troubles == []


def test_a_model_that_does_not_stream_has_no_such_card(page: Any) -> None:
    assert page.locator("#stream-part").is_hidden()
