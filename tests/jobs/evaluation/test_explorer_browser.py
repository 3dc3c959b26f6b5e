"""The explorer page in a real browser, in a sandboxed frame as MLflow shows it, by keyboard alone."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Frame, Page, Route

from jobs.evaluation.explorer import explorer_page
from vlae.config import VlaeConfig
from vlae.models.factory import build_model

pytestmark = pytest.mark.slow

HOST = "http://mlflow.test/"
# What MLflow does with an artifact: a blob in a frame that may run scripts, and has no origin of its own.
SHOW = """html => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts");
  frame.style.cssText = "position: fixed; inset: 0; width: 100%; height: 100%; border: 0";
  frame.onload = done;
  frame.src = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  document.body.append(frame);
})"""
PIXELS = "canvas => canvas.toDataURL()"
CONTROLS = """Array.from(document.querySelectorAll('a, button, summary, input')).filter(
    (each) => each.type !== 'radio' || each.checked)"""
NAMELESS = """Array.from(document.querySelectorAll('input, button, canvas:not([aria-hidden])')).filter((each) =>
    !(each.getAttribute('aria-label') || each.textContent.trim() || each.labels?.[0]?.textContent.trim()))"""
COLOR = """name => {
    document.body.style.outlineColor = `var(--${name})`;
    return getComputedStyle(document.body).outlineColor;
}"""
LOWEST = "\N{MINUS SIGN}3.00"


@pytest.fixture(scope="module")
def html() -> str:
    model = build_model(VlaeConfig(latent_dims=(2, 3), width=4, hidden_dims=8), (3, 16, 16)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # because untrained weights give nearly equal images
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return explorer_page(
        model,
        torch.rand(3, 3, 16, 16, generator=generator),
        title="a run",
        kl_dims=[np.array([0.5, 2.0]), np.array([0.004, 1.0, 3.0])],
        information=np.array([[0.1, np.nan], [0.9, 1.0]]),
        names=["hue", "a factor"],
    ).decode()


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    yield opened
    opened.close()


@pytest.fixture
def frame(tab: Page, html: str) -> Iterator[Frame]:
    """Yield the loaded page; afterwards check that it requested nothing and logged nothing."""
    requests: list[str] = []
    complaints: list[str] = []

    def answer(route: Route) -> None:
        if route.request.url == HOST:
            route.fulfill(body="<!doctype html><title>MLflow</title>", content_type="text/html")
        else:
            requests.append(route.request.url)
            route.abort()

    def listen(message: object) -> None:
        complaints.append(str(getattr(message, "text", message)))

    tab.route(lambda url: not url.startswith(("blob:", "data:")), answer)
    for event in ("console", "pageerror"):
        tab.on(event, listen)
    tab.goto(HOST)
    tab.evaluate(SHOW, html)
    page = tab.frames[1]
    page.wait_for_function("bench.sliders.every((slider) => slider.sheet)")
    yield page
    assert requests == []
    assert complaints == []
    for event in ("console", "pageerror"):
        tab.remove_listener(event, listen)
    tab.unroute_all()


def pixels(frame: Frame, selector: str) -> str:
    return str(frame.locator(selector).evaluate(PIXELS))


def wait_for_change(frame: Frame, selector: str, before: str) -> str:
    frame.wait_for_function(
        f"([which, before]) => ({PIXELS})(document.querySelector(which)) !== before", arg=[selector, before]
    )
    return pixels(frame, selector)


def expect_status(frame: Frame, text: str) -> None:
    frame.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


def test_slider_keyboard_moves_and_resets(frame: Frame, tab: Page) -> None:
    own = pixels(frame, "#large")
    assert own == pixels(frame, "#copy")
    slider = frame.get_by_role("slider", name="Rung 1, latent 2")
    slider.focus()
    assert pixels(frame, "#large") == own
    assert "the image's own value" in str(slider.get_attribute("aria-valuetext"))
    tab.keyboard.press("Home")
    first = wait_for_change(frame, "#large", own)
    assert slider.get_attribute("aria-valuetext") == f"{LOWEST} standard deviations"
    assert f"Rung 1, latent 2 at {LOWEST}" in frame.locator("#caption").inner_text()
    expect_status(frame, f"latent 2 at {LOWEST}")
    tab.keyboard.press("ArrowRight")
    wait_for_change(frame, "#large", first)
    frame.get_by_role("button", name="Reset rung 1").press("Enter")
    wait_for_change(frame, "#large", first)
    assert pixels(frame, "#large") == own
    expect_status(frame, "rung 1 have their own values")


def test_strip_click_selects_that_tile(frame: Frame, tab: Page) -> None:
    """Each tile is where the slider has it: a click in a tile chooses that tile."""
    slider = frame.get_by_role("slider", name="Rung 0, latent 1")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box
    for step in (0, 5, 12):
        tab.mouse.click(box["x"] + (step + 0.5) / 13 * box["width"], box["y"] + box["height"] / 2)
        assert slider.input_value() == str(step)


def test_image_choice_redraws_everything(frame: Frame, tab: Page) -> None:
    pictures = ("#large", "#copy", "#picture", ".rung:first-child .row:nth-of-type(3) canvas")
    before = [pixels(frame, each) for each in pictures]
    frame.get_by_label("Test image 1").first.focus()
    tab.keyboard.press("ArrowRight")
    for each, old in zip(pictures, before, strict=True):
        wait_for_change(frame, each, old)
    assert frame.get_by_label("Test image 2").first.is_checked()
    expect_status(frame, "Test image 2 is chosen")


def test_swap_keyboard_mixes_rungs(frame: Frame, tab: Page) -> None:
    frame.wait_for_function("document.getElementById('mixed').textContent === 'All of A'")
    ends = [pixels(frame, "#end-a"), pixels(frame, "#end-b")]
    assert pixels(frame, "#mixture") == ends[0] != ends[1]
    frame.locator("input[name=way-1]").first.focus()
    tab.keyboard.press("ArrowRight")
    mixed = wait_for_change(frame, "#mixture", ends[0])
    assert mixed != ends[1]
    assert frame.locator("#mixed").inner_text() == "Rung 0 from A, rung 1 from B"
    frame.get_by_role("button", name="All B").press("Enter")
    assert wait_for_change(frame, "#mixture", mixed) == ends[1]
    expect_status(frame, "All of B. A is image 1, B is image 2.")
    frame.locator("input[name=end-a]").nth(1).check(force=True)  # A and B are exchanged
    wait_for_change(frame, "#mixture", ends[1])
    assert pixels(frame, "#mixture") == ends[0]
    assert frame.locator("input[name=end-b]").nth(0).is_checked()


def test_theme_toggle_keeps_contrast(frame: Frame) -> None:
    def contrast(front: str, back: str) -> float:
        def light(name: str) -> float:
            channels = [float(channel) / 255 for channel in frame.evaluate(COLOR, name)[4:-1].split(",")]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
            return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

        dark, bright = sorted((light(front), light(back)))
        return (bright + 0.05) / (dark + 0.05)

    button, back = frame.locator("#theme"), "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for name in ("Dark colors", "Light colors"):
        seen.add(frame.evaluate(back))
        for front, ground, least in [
            ("ink", "paper", 7),
            ("soft", "paper", 4.5),
            ("soft", "well", 4.5),
            ("accent", "paper", 4.5),
            ("on-accent", "accent", 4.5),
            ("edge", "paper", 3),
        ]:
            assert contrast(front, ground) >= least, (front, ground, name)
        assert button.inner_text() == name
        button.press("Enter")
    assert len(seen) == 2


def test_tab_key_reaches_every_control(frame: Frame, tab: Page) -> None:
    frame.locator("summary").press("Enter")
    expected = frame.evaluate(f"{CONTROLS}.length")
    frame.locator("#nav a").first.focus()
    frame.evaluate("window.reached = new Set()")
    for _ in range(expected + 5):
        frame.evaluate("reached.add(document.activeElement)")
        tab.keyboard.press("Tab")
        if frame.evaluate("document.activeElement === document.body"):
            break  # out of the page
    reached = frame.evaluate(f"{CONTROLS}.filter((each) => !reached.has(each)).map((each) => each.outerHTML)")
    assert reached == []
    assert frame.evaluate("document.activeElement === document.body")


@pytest.mark.parametrize("width", [360, 700, 1400])
def test_page_fits_any_width(frame: Frame, tab: Page, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.set_viewport_size({"width": 1200, "height": 900})


def test_every_control_has_a_name(frame: Frame) -> None:
    assert frame.evaluate(f"{NAMELESS}.map((each) => each.outerHTML)") == []
    heat = frame.get_by_role("region", name="Information of each rung")
    assert heat.get_by_role("rowheader").all_inner_texts() == ["Rung 1", "Rung 0"]
    assert heat.get_by_role("cell").all_inner_texts() == ["0.90", "1.00", "0.10", "\N{EN DASH}"]
    assert frame.locator("summary").all_inner_texts() == ["1 inactive latent (below 0.01 nat)"]
