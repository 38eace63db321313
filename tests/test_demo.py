"""The page on which a model can be tried: what it answers, in a browser where there is one, and what it refuses."""

import shutil
import socket
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from transformers import pipeline

from hf_vit import cli
from hf_vit.demo.answers import MAX_CHARACTERS, align, classify, heat_map, load, translate
from hf_vit.demo.page import build, launch
from hf_vit.demo.space import write_space

CARDS = Path(__file__).parents[1] / "model_cards"
DIGITS, DATES = str(CARDS / "digits"), str(CARDS / "dates")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def digits():
    return load(DIGITS)


@pytest.fixture(scope="module")
def dates():
    return load(DATES)


def test_classes_are_those_of_the_pipeline(digits):
    image = Image.open(f"{DIGITS}/sample_0.png")
    expected = pipeline("image-classification", model=DIGITS, trust_remote_code=False)(image, top_k=10)
    found = classify(digits, image)
    assert found == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-5)
    assert sum(found.values()) == pytest.approx(1, abs=1e-4) and digits.class_names == [str(i) for i in range(10)]


def test_each_sentence_is_translated(dates):
    rows = translate(dates, "piatok 31. marca 2084\n\n3 mai 1999\n", 2)
    assert [row[0] for row in rows] == ["piatok 31. marca 2084"] * 2 + ["3 mai 1999"] * 2
    assert (rows[0][1], rows[2][1]) == ("2084-03-31", "1999-05-03") and rows[0][2] > rows[1][2]


def test_a_class_has_a_map_over_the_image(digits):
    image = Image.open(f"{DIGITS}/sample_2.png")
    two, three = (heat_map(digits, image, name) for name in "23")
    assert two.size == (256, 256) and two.tobytes() != three.tobytes()
    with pytest.raises(ValueError, match="class '12' does not exist"):
        heat_map(digits, image, "12")


def test_a_translation_has_a_picture_of_what_was_read(dates):
    assert min(align(dates, "piatok 31. marca 2084", "2084-03-31").size) > 200


def test_inputs_that_are_refused(digits, dates):
    with pytest.raises(ValueError, match="choose an image first"):
        classify(digits, None)
    with pytest.raises(ValueError, match="40 megapixels at most, got 9000 x 9000"):
        classify(digits, Image.new("1", (9000, 9000)))
    with pytest.raises(ValueError, match=r"20,000 characters at most, got 20,001"):
        translate(dates, "x" * (MAX_CHARACTERS + 1), 1)


def test_models_that_cannot_be_compared_are_refused(digits, dates):
    with pytest.raises(ValueError, match=r"of one task to be compared, got image-class.* and transl"):
        build([digits, dates])
    with pytest.raises(ValueError, match="models must be one or two, got 3"):
        build([digits] * 3)


def test_a_taken_port_is_told(digits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port must be free, {port} on 127.0.0.1 is taken"):
            launch(build([digits]), "127.0.0.1", port, blocks=False)


def test_a_taken_port_is_told_before_a_model_is_loaded(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["hf-vit", "demo", DIGITS, "--port", str(port)])
        monkeypatch.setattr("hf_vit.demo.answers.load", lambda *arguments: pytest.fail("it was loaded"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and f"--port must be free, {port} on 127.0.0.1 is taken" in told
    assert told.count("\n") == 1


def test_uploads_that_are_too_large_or_no_images_are_refused(address, tmp_path):
    large, text = tmp_path / "large.png", tmp_path / "text.png"
    large.write_bytes(bytes(21_000_000))
    text.write_text("no image")
    api = f"{address[0].rstrip('/')}/gradio_api"
    with large.open("rb") as file:
        refused = httpx.post(f"{api}/upload", files={"files": file})
    assert refused.status_code == 413 and "20" in refused.text
    with text.open("rb") as file:
        (name,) = httpx.post(f"{api}/upload", files={"files": file}).json()
    events = httpx.get(f"{address[0].rstrip('/')}/config").json()["dependencies"]
    entry = next(each["id"] for each in events if len(each["inputs"]) == 1)  # a new image
    image = {"path": name, "meta": {"_type": "gradio.FileData"}}
    request = {"data": [image], "fn_index": entry, "session_hash": "tested"}
    httpx.post(f"{api}/queue/join", json=request).raise_for_status()
    with httpx.stream("GET", f"{api}/queue/data", params={"session_hash": "tested"}, timeout=60) as told:
        ended = next(line for line in told.iter_lines() if "process_completed" in line)
    assert '"success":false' in ended.replace(" ", "") and "no image that can be read" in ended


def test_a_space_names_models_of_the_hub(tmp_path):
    folder = write_space(["me/digits", "you/digits"], tmp_path / "space", title='A "title"')
    app = (folder / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "load(name) for name in ['me/digits', 'you/digits']" in app
    card = (folder / "README.md").read_text()
    assert card.startswith('---\ntitle: "A \\"title\\""\nsdk: "gradio"\n') and '- "you/digits"' in card
    assert (folder / "requirements.txt").read_text().startswith("hf_vit[demo]>=")
    with pytest.raises(ValueError, match="model must be an id on the Hub, NAMESPACE/NAME"):
        write_space([DIGITS], tmp_path / "other")
    with pytest.raises(ValueError, match="folder must be a new or an empty one"):
        write_space(["me/digits"], folder)


@pytest.fixture(scope="module")
def address(digits, dates):
    pages = [build([digits, digits]), build([dates])]
    addresses = []
    for page in pages:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        addresses.append(launch(page, "127.0.0.1", port, blocks=False))
    yield addresses
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium on this computer")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_an_image_is_classified_in_a_browser(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(address[0])
    page.locator("input[type=file]").first.set_input_files(f"{DIGITS}/sample_0.png")
    answers = page.get_by_test_id("label-output-value")
    answers.nth(1).wait_for(timeout=60_000)
    assert [answers.nth(i).inner_text() for i in range(answers.count())] == ["7", "7"]
    maps = page.locator("img[src*='/file=']")
    page.wait_for_function("document.querySelectorAll('input[type=radio]').length == 10", timeout=60_000)
    before = maps.last.get_attribute("src")
    page.get_by_role("radio").last.check()
    page.wait_for_function("before => [...document.querySelectorAll('img')].at(-1).src != before", arg=before)
    # Nothing sticks out at the side.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_a_text_is_translated_by_keyboard_in_a_browser(browser, address):
    page = browser.new_page()
    page.goto(address[1])
    page.get_by_label("Text", exact=True).fill("piatok 31. marca 2084")
    page.get_by_role("button", name="Translate").focus()
    page.keyboard.press("Enter")
    page.get_by_text("2084-03-31").locator("visible=true").first.wait_for(timeout=60_000)
    page.close()
