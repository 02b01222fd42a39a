"""The report's page: self-contained, harmless, and shown by a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stagewright.runtime.watching.page import page_of

from .reports import HARM, run_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Elements(HTMLParser):
    """Collects tags and texts; demands that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_well_formed_and_runs_and_fetches_nothing() -> None:
    page = page_of(run_file())
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(elements.tags)
    assert set(re.findall(r"[a-z]+://[^\s\"'<>]*", page)) == {"http://www.w3.org/2000/svg"}
    assert f"Run of {HARM}" in elements.texts


def test_the_page_says_what_is_measured_predicted_and_emulated() -> None:
    elements = Elements()
    elements.feed(page_of(run_file()))
    text = " ".join(elements.texts)
    for wanted in (
        "predicted 18.00 ms",
        "20.00 ms",
        "1.111",
        "2.00 / 2.50 (1.25)",
        "1024 / 1024 (1.000)",
        "0.50 / -",
        "emulated",
        "The predictions are for schedule 1f1b",
        "slowed down 2.5 times",
        "stage 1, rank 1: backward in two parts, of the inputs 1.50 / 2.25, of the weights - / 2.25",
    ):
        assert wanted in text
    assert elements.tags.count("svg") == 3


def test_chromium_shows_the_page(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    page, picture = tmp_path / "run.html", tmp_path / "run.png"
    page.write_text(page_of(run_file()))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1600"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    shown = subprocess.run(
        [*command, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "<title>Run of &lt;script&gt;" in shown.stdout, "nothing in the page was run"
    assert "Refused to" not in shown.stderr
    assert shown.stdout.count("<rect") == page.read_text().count("<rect")
