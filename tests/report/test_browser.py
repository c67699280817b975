"""The report in a real browser: headless Chromium driven through its WebDriver.

Skipped where Selenium, Chromium or chromedriver is missing (Debian: apt-get install chromium
chromium-driver; pip install selenium).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import write_jsonl

from srft.report.report_page import write_report
from srft.runs.files import read_jsonl

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="no chromium with chromedriver on the PATH"
    ),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1440,950",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


class Page:
    """One open report. Every question waits for its answer, and the console must stay silent."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        self.path = path
        browser.get_log("browser")

    def open(self, view: str = "") -> Page:
        self.browser.get("about:blank")
        self.browser.get(f"{self.path.resolve().as_uri()}#{view}")
        self.until(
            f"document.querySelector('.view:not([hidden])')?.id === 'view-{view or 'summary'}'"
        )
        return self

    def js(self, expression: str) -> Any:
        return self.browser.execute_script(f"return ({expression});")

    def until(self, condition: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.js(f"Boolean({condition})"):
            assert time.monotonic() < end, (
                f"never came true: {condition}; console: {self.browser.get_log('browser')}"
            )
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        self.until(f"document.querySelector({selector!r})")
        self.browser.find_element("css selector", selector).click()

    def fill(self, selector: str, text: str) -> None:
        field = self.browser.find_element("css selector", selector)
        field.clear()
        field.send_keys(text)

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({selector!r})?.textContent ?? ''")

    def quiet(self) -> None:
        messages = [
            m for m in self.browser.get_log("browser") if m["level"] in ("SEVERE", "WARNING")
        ]
        assert messages == []
        assert self.js("typeof window.pwned") == "undefined"


@pytest.fixture
def open_report(browser, tmp_path) -> Callable[..., Page]:
    def make(runs: list[Path], view: str = "", **options: Any) -> Page:
        return Page(browser, write_report(runs, tmp_path / "report.html", **options)).open(view)

    return make


def test_every_view_opens_without_a_word_in_the_console(open_report, make_run):
    runs = [
        make_run(f"{m}-{s}", method=m, seed=s, steps=12, groups=4)
        for m in ("srft", "grpo")
        for s in (0, 1)
    ]
    page = open_report(runs)
    for view in ("summary", "curves", "terms", "compare", "samples", "settings"):
        page.click(f"#tab-{view}")
        page.until(f"document.querySelector('#view-{view}')?.childElementCount > 0")
        assert "could not be shown" not in page.text(f"#view-{view}")
    page.until("document.querySelectorAll('#view-curves svg .line').length > 20")
    assert "2 seeds" in page.text("#view-curves")
    page.quiet()


def test_hovering_a_curve_shows_its_figures(open_report, make_run):
    page = open_report([make_run(steps=20)], "curves")
    page.until("document.querySelector('#view-curves svg .line')")
    chart = page.browser.find_element("css selector", "#view-curves svg")
    webdriver.ActionChains(page.browser).move_to_element(chart).perform()
    page.until("!document.querySelector('#tip').hidden")
    assert "step" in page.text("#tip")
    page.quiet()


def test_a_curve_is_hidden_and_found_again(open_report, make_run):
    page = open_report([make_run(steps=20)], "terms")
    count = (
        "document.querySelectorAll('#view-terms figure svg')[0].querySelectorAll('.line').length"
    )
    page.until(f"document.querySelector('#view-terms svg') && {count} === 4")
    page.click("#view-terms button.key")
    page.until(f"{count} === 3")
    page.click("#view-terms button.key")
    page.until(f"{count} === 4")
    page.click("#tab-curves")
    page.until("document.querySelectorAll('#view-curves figure').length > 10")
    page.fill("#find-metric", "gradient_norm")
    page.until("document.querySelectorAll('#view-curves figure').length === 1")
    page.quiet()


def test_filters_narrow_the_list_and_dim_what_does_not_match(open_report, make_run):
    page = open_report([make_run(groups=40, rollouts=3)], "samples")
    page.until("document.querySelectorAll('#sample-list .item').length > 5")
    assert page.text("#sample-count") == "40 of 40 prompts"
    page.fill("#stepFrom", "31")
    page.until("document.querySelector('#sample-count').textContent === '20 of 40 prompts'")
    page.click("#reset")
    page.until("document.querySelector('#sample-count').textContent === '40 of 40 prompts'")
    page.fill("#rewardFrom", "0.5")
    page.js(
        "document.querySelector('#kind').value = '0',"
        "document.querySelector('#kind').dispatchEvent(new Event('change'))"
    )
    page.until("document.querySelectorAll('.response.dim').length > 0")
    assert page.js(
        "[...document.querySelectorAll('.response:not(.dim)')]"
        ".every((r) => r.textContent.includes('✓ right'))"
    )
    page.quiet()


def test_search_reads_prompts_and_responses_of_all_blocks(open_report, make_run):
    page = open_report([make_run(groups=230, rollouts=1, tokens=8)], "samples")
    page.until("document.querySelectorAll('#sample-list .item').length > 5")
    page.fill("#find", "b = a * 229 ;")
    page.until("document.querySelector('#sample-count').textContent === '1 of 230 prompts'")
    page.until("document.querySelector('pre.prompt')?.textContent.includes('229')")
    page.quiet()


def test_tokens_are_coloured_by_what_is_chosen_and_say_their_figures(open_report, make_run):
    page = open_report([make_run(groups=3)], "samples")
    page.until("document.querySelectorAll('.tokens span').length > 50")
    coloured = "[...document.querySelectorAll('.tokens span')].filter((s) => s.style.backgroundColor).length"
    assert page.js(coloured) > 50
    for quantity in ("surprise", "advantage", "loss", "entropy"):
        page.click(f"#by-{quantity}")
        page.until(
            f"document.querySelector('#by-{quantity}').getAttribute('aria-checked') === 'true'"
        )
        assert page.js(coloured) > 20
    token = page.browser.find_element("css selector", ".tokens span")
    webdriver.ActionChains(page.browser).move_to_element(token).perform()
    page.until("!document.querySelector('#tip').hidden")
    for word in ("probability", "entropy", "advantage", "loss", "position"):
        assert word in page.text("#tip")
    page.click("#by-none")
    page.until(f"{coloured} === 0")
    page.quiet()


def test_what_a_tool_wrote_is_marked(open_report, make_run):
    run = make_run(groups=1)
    records = read_jsonl(run / "samples.jsonl")
    first = records[0]["responses"][0]
    for name in ("logprob", "entropy", "loss"):
        first[name][1:3] = [None, None]
    write_jsonl(run / "samples.jsonl", records)
    page = open_report([run], "samples")
    page.until("document.querySelectorAll('.tokens span').length > 5")
    told = "[...document.querySelectorAll('.tokens span.told')].map((s) => s.dataset.i)"
    assert page.js(f"{told}.join()") == "1,2"
    assert "2 of them a tool's" in page.text("article.response")
    token = page.browser.find_element("css selector", ".tokens span.told")
    webdriver.ActionChains(page.browser).move_to_element(token).perform()
    page.until("!document.querySelector('#tip').hidden")
    assert "not trained" in page.text("#tip") and "advantage" not in page.text("#tip")
    page.quiet()


def test_hostile_text_is_shown_as_text(open_report, make_run):
    page = open_report([make_run(groups=8)], "samples")
    page.until("document.querySelector('pre.prompt')")
    assert page.text("pre.prompt").endswith("<script>window.pwned=1</script>")
    for sign in ("<img src=x onerror=window.pwned=1>", "<!--<script>", "מימין לשמאל", "🎉"):
        assert sign in page.text("#sample-detail")
    assert page.js("document.querySelectorAll('img, #main script').length") == 0
    page.click("#tab-settings")
    page.until("document.querySelector('#view-settings .events')")
    assert "<script>window.pwned=1</script>" in page.text("#view-settings")
    page.quiet()


def test_the_theme_follows_the_system_until_it_is_chosen(open_report, make_run):
    page = open_report([make_run(steps=3)])
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        page.until(
            f"{paper} === '{'rgb(246, 247, 249)' if scheme == 'light' else 'rgb(18, 21, 26)'}'"
        )
    page.click("#theme")
    page.until(f"{paper} === 'rgb(246, 247, 249)'")
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.js("sessionStorage.clear()")
    page.quiet()


@pytest.mark.parametrize(
    "left",
    [["config.yaml"], ["metrics.jsonl"], ["samples.jsonl"], ["metrics.jsonl", "config.yaml"]],
)
def test_a_run_that_has_hardly_begun_is_shown(open_report, make_run, left):
    path = make_run(steps=2, groups=2)
    for file in path.iterdir():
        if file.is_file() and file.name not in left:
            file.unlink()
    page = open_report([path])
    for view in ("curves", "terms", "compare", "samples", "settings", "summary"):
        page.click(f"#tab-{view}")
        page.until(f"document.querySelector('#view-{view}')?.childElementCount > 0")
        assert "could not be shown" not in page.text(f"#view-{view}")
    assert "is missing" in page.text("#view-summary")
    page.quiet()


@pytest.mark.slow
def test_five_thousand_prompts_open_and_scroll(open_report, make_run, record_property):
    page = open_report([make_run(groups=5000, rollouts=3, tokens=30)])
    start = time.monotonic()
    page.open("samples")
    page.until("document.querySelectorAll('.tokens span').length > 50")
    record_property("seconds_to_first_sample", round(time.monotonic() - start, 3))
    assert page.text("#sample-count") == "5,000 of 5,000 prompts"
    assert page.js("document.querySelectorAll('#sample-list .item').length") < 60
    page.js("document.querySelector('#sample-list').scrollTop = 1e9")
    page.until("document.querySelector('#sample-list').textContent.includes('a * 4999')")
    start = time.monotonic()
    page.fill("#find", "a * 4998 ;")
    page.until("document.querySelector('#sample-count').textContent === '1 of 5,000 prompts'")
    record_property("seconds_to_first_search", round(time.monotonic() - start, 3))
    page.quiet()


def test_the_live_page_reloads_itself_and_keeps_its_place(browser, make_run):
    import threading

    from srft.report.watch import ReportServer

    path = make_run(steps=5, groups=2)
    server = ReportServer([path])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        page = Page(browser, path)
        browser.get(server.url + "#curves")
        page.until("document.querySelector('#view-curves svg .line')")
        browser.execute_script("window.before = 1")
        with (path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "loss": 0.1}\n')
        page.until(
            "window.before === undefined && document.querySelector('#view-curves svg .line')"
        )
        assert "loss" in page.text("#view-curves").lower()
        page.quiet()
    finally:
        browser.get("about:blank")
        server.shutdown()
        server.server_close()
        thread.join()


def test_one_problems_answers_before_and_after_stand_side_by_side(open_report, make_run):
    run = make_run(steps=8)
    rewrite_answers(run, {0: ("no idea", False), 8: ("It is 7 </script><b>now</b>", True)})
    page = open_report([run])
    page.until("document.querySelectorAll('#problem .response').length === 2")
    before, after = (page.text(f"#problem .response:nth-child({k})") for k in (1, 2))
    assert "Before (step 0)" in before and "wrong" in before and "no idea" in before
    assert "After (step 8)" in after and "right" in after and "</script><b>now</b>" in after
    asked = "document.querySelector('#problem pre.prompt').textContent"
    first = page.js(asked)
    page.js(
        "document.querySelector('#problem-choice').value = '1',"
        "document.querySelector('#problem-choice').dispatchEvent(new Event('change'))"
    )
    page.until(f"{asked} !== {first!r}")
    page.quiet()


def rewrite_answers(run: Path, answers: dict[int, tuple[str, bool]]) -> None:
    """Every kept answer of an evaluation at these steps becomes this text."""
    rows = read_jsonl(run / "evaluation.jsonl")
    for row in rows:
        text, correct = answers.get(row["step"], ("between", False))
        row["samples"] = [{**s, "text": text, "correct": correct} for s in row["samples"]]
    write_jsonl(run / "evaluation.jsonl", rows)


@pytest.mark.skipif(
    "SRFT_SCREENSHOTS" not in os.environ, reason="set SRFT_SCREENSHOTS to a folder to take pictures"
)
def test_screenshots(open_report, make_run):
    folder = Path(os.environ["SRFT_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    page = open_report([make_run()])
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        for view in ("summary", "curves", "terms", "compare", "samples", "settings"):
            page.open(view)
            time.sleep(0.6)
            page.browser.save_screenshot(str(folder / f"{view}-{scheme}.png"))
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
def test_the_page_of_an_analysis_opens_in_every_view(browser, make_run, tmp_path):
    """srft analyze builds its page from the same parts."""
    import yaml
    from safetensors.torch import load_file, save_file
    from tests.toys import save_lab_model

    from srft.analysis.analyze import analyze

    for seed, name in enumerate(("base", "tuned")):
        save_lab_model(tmp_path / name, "llama", seed=seed, num_hidden_layers=1)
    run = make_run(steps=8, groups=3, rollouts=2, tokens=20)
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    recipe["model"]["path"] = str(tmp_path / "base")
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    folder = run / "checkpoints" / "step_000008" / "weights"
    folder.mkdir(parents=True)
    save_file(load_file(tmp_path / "tuned" / "model.safetensors"), folder / "model.safetensors")
    models = [str(tmp_path / "base"), str(tmp_path / "tuned")]
    analyze(models, run, tmp_path / "out", runs=[run])
    page = Page(browser, tmp_path / "out" / "analysis.html").open("shift")
    for view in ("tokens", "dynamics", "gradient", "shift"):
        page.click(f"#tab-{view}")
        page.until(f"document.querySelector('#view-{view}')?.childElementCount > 0")
        assert "could not be shown" not in page.text(f"#view-{view}")
    page.click("#tab-tokens")
    page.until("document.querySelectorAll('.tokens span').length > 5")
    assert page.js("document.querySelector('#by-base').getAttribute('aria-checked')") == "true"
    page.click("#tab-dynamics")
    page.until("document.querySelectorAll('#view-dynamics circle.point').length >= 4")
    turned = "document.querySelector('.turn circle.point').getAttribute('cx')"
    before = page.js(turned)
    box = page.browser.find_element("css selector", ".turn")
    webdriver.ActionChains(page.browser).drag_and_drop_by_offset(box, 120, 30).perform()
    page.until(f"{turned} !== '{before}'")
    page.quiet()
