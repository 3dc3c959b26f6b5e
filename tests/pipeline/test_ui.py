"""MLflow's pages after real runs, in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers.commands import result_of, run, small
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, expect
from servers.browser import mlflow_ui, save_screenshot, wait_until_loaded

from jobs.cli import format_number

pytestmark = pytest.mark.slow

PIXELS = "canvas => canvas.toDataURL()"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return a workspace with ladders of three and of two rungs, and the results of their commands."""
    folder = tmp_path_factory.mktemp("ui")
    results = [result_of(run(small(model__latent_dims=dims), folder)) for dims in ("2,2,3", "3,5")]
    return folder / "ws", results


@pytest.fixture(scope="module")
def page(runs: tuple[Path, list[dict[str, Any]]], browser: Browser) -> Iterator[Page]:
    with mlflow_ui(runs[0] / "mlflow.db") as address:
        opened = browser.new_page(viewport={"width": 1500, "height": 1100}, base_url=address)
        opened.set_default_timeout(30_000)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def client(runs: tuple[Path, list[dict[str, Any]]]) -> MlflowClient:
    return MlflowClient(f"sqlite:///{runs[0] / 'mlflow.db'}")


def check_block_figure(page: Page) -> None:
    wait_until_loaded(page, page.locator("img[src^=get-artifact]").first)


def test_run_page_has_block_figure_and_metrics(
    page: Page, runs: tuple[Path, list[dict[str, Any]]], client: MlflowClient
) -> None:
    first = runs[1][0]
    experiment = client.get_run(first["run_id"]).info.experiment_id
    page.goto(f"/#/experiments/{experiment}/runs/{first['run_id']}")
    check_block_figure(page)
    page.get_by_text("Show more").first.click()
    expect(page.get_by_role("cell", name=format_number(first["metrics"]["elbo"])).first).to_be_visible()
    save_screenshot(page, "run")


def test_explorer_in_mlflow_redraws_on_a_slider(
    page: Page, runs: tuple[Path, list[dict[str, Any]]], client: MlflowClient
) -> None:
    first = runs[1][0]
    experiment = client.get_run(first["run_id"]).info.experiment_id
    page.goto(f"/#/experiments/{experiment}/runs/{first['run_id']}/artifacts")
    page.get_by_text("explorer.html").first.click()
    frame = page.frame_locator("iframe")
    slider = frame.get_by_role("slider").first
    slider.wait_for()
    image = frame.locator("#large")
    before = image.evaluate(PIXELS)
    slider.focus()
    for key in ("Home", "End"):  # one of the ends is not the image's own value
        page.keyboard.press(key)
    page.wait_for_timeout(500)
    assert image.evaluate(PIXELS) != before
    save_screenshot(page, "explorer")


def test_version_page_has_figure_command_and_data(page: Page, client: MlflowClient) -> None:
    champion = client.get_model_version_by_alias("digits", "champion")
    challenger = client.get_registered_model("digits").aliases.get("challenger")
    assert {str(champion.version), str(challenger)} == {"1", "2"}
    page.goto(f"/#/models/digits/versions/{champion.version}")
    check_block_figure(page)
    expect(page.get_by_text("champion").first).to_be_visible()
    expect(page.get_by_text("python -m pipeline.run stage=shard,train,evaluate").first).to_be_attached()
    expect(page.get_by_text(champion.tags["data_fingerprint"]).first).to_be_attached()
    expect(page.get_by_text("Outputs (")).to_be_attached()  # of the signature, one per rung
    save_screenshot(page, "version")
    model_id = champion.source.removeprefix("models:/")
    experiment = client.get_logged_model(model_id).experiment_id
    page.goto(f"/#/experiments/{experiment}/models/{model_id}")
    expect(page.get_by_text(f"digits v{champion.version}").first).to_be_visible()
    expect(page.get_by_text("test/elbo", exact=True).first).to_be_visible()
    save_screenshot(page, "logged_model")


def test_compare_page_has_depth_and_capacity(
    page: Page, runs: tuple[Path, list[dict[str, Any]]], client: MlflowClient
) -> None:
    ids = [result["run_id"] for result in runs[1]]
    experiment = client.get_run(ids[0]).info.experiment_id
    page.goto(f"/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}")
    for axis in ("capacity.depth", "capacity.latents", "capacity.parameters"):
        expect(page.locator("svg").get_by_text(axis).first).to_be_visible()
    save_screenshot(page, "compare")
