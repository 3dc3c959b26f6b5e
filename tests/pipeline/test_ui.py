"""MLflow's pages after real runs, in a real browser: a model is picked there by eye."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers.commands import result_of, run, small
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, expect
from servers.browser import keep, mlflow_ui, shown_whole

from jobs.cli import format_number

pytestmark = pytest.mark.slow

PIXELS = "canvas => canvas.toDataURL()"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A workspace with a ladder of three rungs and one of two; what their commands said."""
    folder = tmp_path_factory.mktemp("ui")
    done = [result_of(run(small(model__latent_dims=dims), folder)) for dims in ("2,2,3", "3,5")]
    return folder / "ws", done


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


def block_figure_is_shown(page: Page) -> None:
    shown_whole(page, page.locator("img[src^=get-artifact]").first)


def test_the_run_begins_with_its_block_figure_and_its_scores(
    page: Page, runs: tuple[Path, list[dict[str, Any]]], client: MlflowClient
) -> None:
    first = runs[1][0]
    experiment = client.get_run(first["run_id"]).info.experiment_id
    page.goto(f"/#/experiments/{experiment}/runs/{first['run_id']}")
    block_figure_is_shown(page)
    page.get_by_text("Show more").first.click()
    expect(page.get_by_role("cell", name=format_number(first["scores"]["elbo"])).first).to_be_visible()
    keep(page, "run")


def test_the_explorer_works_where_mlflow_shows_it(
    page: Page, runs: tuple[Path, list[dict[str, Any]]], client: MlflowClient
) -> None:
    first = runs[1][0]
    experiment = client.get_run(first["run_id"]).info.experiment_id
    page.goto(f"/#/experiments/{experiment}/runs/{first['run_id']}/artifacts")
    page.get_by_text("explorer.html").first.click()
    frame = page.frame_locator("iframe")
    slider = frame.get_by_role("slider").first
    slider.wait_for()
    shown = frame.locator("#large")
    before = shown.evaluate(PIXELS)
    slider.focus()
    for key in ("Home", "End"):  # whichever end the image's own value is not at
        page.keyboard.press(key)
    page.wait_for_timeout(500)
    assert shown.evaluate(PIXELS) != before
    keep(page, "explorer")


def test_the_version_says_what_it_is(page: Page, client: MlflowClient) -> None:
    champion = client.get_model_version_by_alias("digits", "champion")
    challenger_or_none = client.get_registered_model("digits").aliases.get("challenger")
    assert {str(champion.version), str(challenger_or_none)} == {"1", "2"}
    page.goto(f"/#/models/digits/versions/{champion.version}")
    block_figure_is_shown(page)
    expect(page.get_by_text("champion").first).to_be_visible()
    expect(page.get_by_text("python -m pipeline.run stage=shard,train,evaluate").first).to_be_attached()
    expect(page.get_by_text(champion.tags["data_fingerprint"]).first).to_be_attached()
    expect(page.get_by_text("Outputs (")).to_be_attached()  # of the signature, a rung each
    keep(page, "version")
    model_id = champion.source.removeprefix("models:/")
    experiment = client.get_logged_model(model_id).experiment_id
    page.goto(f"/#/experiments/{experiment}/models/{model_id}")
    expect(page.get_by_text(f"digits v{champion.version}").first).to_be_visible()
    expect(page.get_by_text("test/elbo", exact=True).first).to_be_visible()
    keep(page, "logged_model")


def test_runs_compare_over_depth_and_capacity(
    page: Page, runs: tuple[Path, list[dict[str, Any]]], client: MlflowClient
) -> None:
    ids = [found["run_id"] for found in runs[1]]
    experiment = client.get_run(ids[0]).info.experiment_id
    page.goto(f"/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}")
    for axis in ("capacity.depth", "capacity.latents", "capacity.parameters"):
        expect(page.locator("svg").get_by_text(axis).first).to_be_visible()
    keep(page, "compare")
