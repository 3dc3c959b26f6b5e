"""MLflow's pages of a search in a browser: runs of the trials, figures, parallel coordinates."""

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

pytestmark = pytest.mark.slow

SPACE = [
    "tune.param_space.model.latent_dims=7/3,4/2,2,3",
    "tune.algorithm=grid",
    "tune.scheduler=none",
    "tune.trials=3",
]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A workspace with a search of three trials, and the search in the JSON output of its command."""
    folder = tmp_path_factory.mktemp("ui")
    return folder / "ws", result_of(run([*small(stage="shard,tune"), *SPACE], folder))["search"]


@pytest.fixture(scope="module")
def page(search: tuple[Path, dict[str, Any]], browser: Browser) -> Iterator[Page]:
    with mlflow_ui(search[0] / "mlflow.db") as address:
        opened = browser.new_page(viewport={"width": 1500, "height": 1000}, base_url=address)
        opened.set_default_timeout(30_000)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def experiment(search: tuple[Path, dict[str, Any]]) -> str:
    client = MlflowClient(f"sqlite:///{search[0] / 'mlflow.db'}")
    return str(client.get_run(search[1]["run_id"]).info.experiment_id)


def test_mlflow_lists_trials_below_search(page: Page, experiment: str) -> None:
    """The runs of the trials unfold below the run of the search."""
    page.goto(f"/#/experiments/{experiment}/runs")
    expect(page.get_by_text("search-vlae-digits").first).to_be_visible()
    expect(page.get_by_text("trial-1-vlae-3-4-digits-seed0")).to_have_count(0)
    page.get_by_role("row").filter(has_text="search-vlae-digits").get_by_role("button").first.click()
    for name in ("trial-0-vlae-7", "trial-1-vlae-3-4", "trial-2-vlae-2-2-3"):
        expect(page.get_by_text(f"{name}-digits-seed0").first).to_be_visible()
    save_screenshot(page, "search_runs")


def test_mlflow_search_page_has_table_and_figures(
    page: Page, experiment: str, search: tuple[Path, dict[str, Any]]
) -> None:
    """The page of the search shows the metrics of the best trial and both figures."""
    page.goto(f"/#/experiments/{experiment}/runs/{search[1]['run_id']}")
    page.get_by_text("Show more").first.click()
    best = search[1]["trials"][0]
    expect(page.get_by_role("cell", name=f"{best['metrics']['elbo']:.5g}").first).to_be_visible()
    for figure in page.locator("img[src^=get-artifact]").all():
        wait_until_loaded(page, figure)
    expect(page.locator("img[src^=get-artifact]")).to_have_count(2)
    save_screenshot(page, "search")


def test_mlflow_compares_trials(page: Page, experiment: str, search: tuple[Path, dict[str, Any]]) -> None:
    """MLflow compares the trials as parallel coordinates of depth, parameters and settings."""
    client = MlflowClient(f"sqlite:///{search[0] / 'mlflow.db'}")
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{search[1]['run_id']}'")
    ids = [run.info.run_id for run in runs]
    page.goto(f"/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}")
    for axis in ("capacity.depth", "capacity.parameters", "model.latent_dims"):
        expect(page.locator("svg").get_by_text(axis).first).to_be_visible()
    save_screenshot(page, "search_compare")
