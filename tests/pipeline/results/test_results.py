"""The page of results says what MLflow's runs say: every mean, interval and test recomputed here with scipy."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from scipy import stats

from jobs.evaluation.plots import bars
from jobs.tracking.query import TrackedRun
from pipeline.results.__main__ import main
from pipeline.results.protocol import claims, published

SEEDS = range(4)
PICTURE = bars([1.0], ["rung 0"], [""], "rates", "nats")
Scores = dict[str, float]


def scores(model: str, seed: int) -> Scores:
    draw = np.random.default_rng([*model.encode(), seed])
    ladder = model == "vlae"
    found = {
        "elbo": -14_000 - 500 * (not ladder) + draw.normal(0, 20),
        "upper_rung_gain": (0.4 if ladder else 0.02) + draw.normal(0, 0.005),
        "centroid/hue": 0.01 + draw.uniform(0, 0.02),
        "centroid/digit": 0.8 + draw.normal(0, 0.05),
        "mean_color_share/rung_0": 0.95 + draw.uniform(0, 0.02),
        "mean_color_share/rung_1": 0.05 + draw.uniform(0, 0.02),
        "gibbs_distance/step_5": 3 + draw.normal(0, 0.1),
    }
    return {name: float(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def made(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow with the runs of three models as the pipeline leaves them, and some that do not count."""
    tmp_path = tmp_path_factory.mktemp("claim")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("claim", artifact_location=(tmp_path / "mlartifacts").as_uri())
    (tmp_path / "blocks.png").write_bytes(PICTURE)
    command = "python -m pipeline.run preset=claim tune.trials=9 workspace=/secret/place"
    search = client.create_run(experiment, tags={"command": command}).info.run_id

    def run(
        model: str, seed: int, steps: int = 1500, status: str = "finished", dims: str = "4,4,10", **metrics: float
    ) -> None:
        tags = {
            "tune.status": status,
            "tune.value.preset": model,
            "command": f"python -m pipeline.run model={model} workspace=/secret/place",
        }
        of = {"data_fingerprint": "f", "mlflow.parentRunId": search}
        run_id = client.create_run(experiment, tags={**tags, **of}).info.run_id
        for key, value in {"data": "digits", "seed": seed, "train.steps": steps, "dims": dims}.items():
            client.log_param(run_id, key, value)
        for name, value in metrics.items():
            client.log_metric(run_id, f"test/{name}", value)
        client.log_artifact(run_id, str(tmp_path / "blocks.png"), "figures")

    run("claim-vlae", 0, steps=10, elbo=-1.0)  # a comparison of its own
    run("claim-vlae", 7, dims="9,9", elbo=-1.0)  # of an earlier preset of that name
    for model in ("vlae", "hvae"):
        for seed in SEEDS:
            run(f"claim-{model}", seed, **scores(model, seed))
    run("claim-vae", 0, **scores("vae", 0))
    run("claim-vlae", 9, status="stopped", **scores("vlae", 9))
    run("claim-lvae", 0)  # was not evaluated
    run("mine", 0, **scores("mine", 0))
    return tmp_path


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """One to change."""
    shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def cells(page: str, name: str) -> list[str]:
    """The first row of a table that begins with a score."""
    found = re.search(rf"^\| `{re.escape(name)}` \| (.*) \|$", page, re.M)
    assert found is not None, name
    return found[1].split(" | ")


def the_page(workspace: Path) -> str:
    """Of the runs of 1,500 steps."""
    assert main([f"out={workspace}/docs", f"workspace={workspace}"]) == 0
    return (workspace / "docs" / "results.md").read_text().partition("## digits, 1,500 steps")[2]


def numbers(cell: str) -> list[float]:
    return [float(part.replace(",", "")) for part in cell.split(" ± ")]


def test_every_cell_is_the_mean_and_the_interval_of_its_runs(workspace: Path) -> None:
    page = the_page(workspace)
    assert "| vlae (4) | hvae (4) | vae (1) |" in page
    for name in scores("vlae", 0):
        for model, cell in zip(("vlae", "hvae"), cells(page, name), strict=False):
            values = [scores(model, seed)[name] for seed in SEEDS]
            half = stats.t.ppf(0.975, 3) * stats.sem(values)
            mean, shown = numbers(cell)
            assert mean == pytest.approx(np.mean(values), abs=0.06 * half)
            assert shown == pytest.approx(half, rel=0.06)
    difference, p = cells(page.split("### vlae minus hvae")[1], "elbo")
    pairs = [[scores(model, seed)["elbo"] for seed in SEEDS] for model in ("vlae", "hvae")]
    assert numbers(difference)[0] == pytest.approx(np.mean(np.subtract(*pairs)), rel=0.01)
    assert float(p) == pytest.approx(stats.ttest_rel(*pairs).pvalue, rel=0.06)


def test_models_of_other_machines_stay_in_a_table(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    the_page(workspace)
    table = workspace / "docs" / "results" / "digits-1500.csv"
    text = table.read_text()
    only_hvae = [line for line in text.splitlines() if not line.startswith(("claim-vlae", "claim-vae"))]
    foreign = [line.replace("claim-hvae", "claim-grown") for line in only_hvae if line.startswith("claim-hvae")]
    other_data = [re.sub(r"hvae(.*,)(\w{31})\w,f,", r"lvae\1\2z,g,", line) for line in only_hvae[1:]]
    table.write_text("\n".join([*only_hvae, *foreign, *other_data]) + "\n")
    capsys.readouterr()
    page = the_page(workspace)
    assert "digits-1500: 13 runs; left out of those before: 4, of other data" in capsys.readouterr().out
    assert "| vlae (4) | grown (4) | hvae (4) | vae (1) |" in page
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    expected = [*4 * ["claim-vlae"], *4 * ["claim-grown"], *4 * ["claim-hvae"], "claim-vae"]
    assert [line["preset"] for line in lines] == expected
    assert [line for line in table.read_text().splitlines() if "grown" not in line] == text.splitlines()


def test_the_claims_are_judged_by_the_numbers(workspace: Path) -> None:
    main([f"out={workspace}/docs", f"workspace={workspace}"])
    said = [line for line in (workspace / "docs" / "results.md").read_text().splitlines() if line.startswith("- **")]
    assert len(said) == 3
    assert all(line.startswith("- **Holds**") for line in said)
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    for run in client.search_runs([client.get_experiment_by_name("claim").experiment_id]):  # type: ignore[union-attr]
        client.log_metric(run.info.run_id, "test/upper_rung_gain", 0.06, step=1)
        client.log_metric(run.info.run_id, "test/mean_color_share/rung_1", 0.11, step=1)
        client.log_metric(run.info.run_id, "test/centroid/digit", 0.02, step=1)
    main([f"out={workspace}/docs", f"workspace={workspace}"])
    said = [line for line in (workspace / "docs" / "results.md").read_text().splitlines() if line.startswith("- **")]
    assert len(said) == 3
    assert all(line.startswith("- **Does not hold**") for line in said)


def test_trainings_of_other_lengths_are_compared_by_themselves(workspace: Path) -> None:
    the_page(workspace)
    page = (workspace / "docs" / "results.md").read_text()
    assert re.findall(r"^## (.*)", page, re.M) == ["digits, 10 steps", "digits, 1,500 steps"]
    assert cells(page, "elbo") == ["-1"]


def test_every_run_is_named_and_no_place_is_told(workspace: Path) -> None:
    page = the_page(workspace)
    assert len(set(re.findall(r"`([0-9a-f]{32})`", page))) == 2 * len(SEEDS) + 1
    assert all("/secret" not in path.read_text() for path in (workspace / "docs").rglob("*.[cm][sd]*"))
    assert "    python -m pipeline.run model=claim-vlae" in page
    assert "    python -m pipeline.run preset=claim tune.trials=9\n" in page
    for model in ("vlae", "hvae"):
        assert (workspace / "docs" / "results" / f"digits-1500-{model}-blocks.png").read_bytes() == PICTURE
        assert f"(results/digits-1500-{model}-blocks.png)" in page


def test_tables_of_other_machines_stay_on_the_page(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"out={workspace}/docs", f"workspace={workspace}"])
    page = (workspace / "docs" / "results.md").read_text()
    table = workspace / "docs" / "results" / "digits-1500.csv"
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(SEEDS) + 1
    assert all(float(line["elbo"]) == scores(line["preset"].removeprefix("claim-"), int(line["seed"]))["elbo"]
               for line in lines)  # fmt: skip
    table.rename(table.with_name("sprites-1500.csv"))
    sprites = table.with_name("sprites-1500.csv")
    sprites.write_text(re.sub(r"(?m)^(claim-\w+),digits,", r"\1,sprites,", sprites.read_text()))
    main([f"out={workspace}/docs", f"workspace={workspace}"])
    both = (workspace / "docs" / "results.md").read_text()
    digits, drawn = both.index("## digits, 1"), both.index("## sprites, 1")
    assert digits < drawn
    assert both[:drawn].rstrip() == page.rstrip()
    whole = sprites.read_text()
    for damaged in (
        "",
        "preset,elbo\nclaim-vlae,high\n",
        whole[: whole.rindex(",s")],
        whole.replace(",sprites,", ",digits,"),
        whole.replace(",1500,", ",1600,"),
    ):
        sprites.write_text(damaged)
        assert main([f"out={workspace}/docs", f"workspace={workspace}"]) == 1
        assert "sprites-1500.csv is no table of runs" in capsys.readouterr().err


@pytest.mark.parametrize(("mig", "holds"), [(0.09, [False, False]), (0.2, [True, False]), (0.5, [True, True])])
def test_the_best_ladder_is_held_against_published_numbers(mig: float, holds: list[bool]) -> None:
    def model(score: float) -> dict[int, TrackedRun]:
        return {seed: TrackedRun(str(seed), "", "", "", {}, {}, {"mig": score + seed / 1e3}) for seed in (-1, 1)}

    said = claims("sprites", {"vlae": model(0.05), "grown": model(mig), "vae": model(0.9)})
    assert ["**Holds**" in line for line in said if line] == holds
    assert all("grown" in line for line in said if line)
    assert any(".10" in line and ".45" in line for line in published("sprites"))


def test_the_gap_of_the_factors_that_others_count_is_judged_too() -> None:
    def said(of_x: float, known: int = 2) -> list[str]:
        gaps = {"mig": 0.4, "mig/shape": 0.0, "mig/scale": 0.6, "mig/orientation": 0.1, "mig/x": of_x, "mig/y": 0.7}
        runs = {
            seed: TrackedRun(str(seed), "", "", "", {}, {}, gaps if seed < known else {"mig": 0.4}) for seed in range(2)
        }
        return [line for line in claims("sprites", {"vlae": runs}) if line]

    assert ["**Holds**" in line for line in said(0.6)] == [True, False, True]
    assert "without shape" in said(0.6)[2]
    assert "(vlae: 0.5 ± 0)" in said(0.6)[2]
    assert ["**Holds**" in line for line in said(0.3)] == [True, False, False]
    assert len(said(0.6, known=1)) == 2  # not of all seeds


@pytest.mark.parametrize(("data", "judged"), [("digits", True), ("mine", True), ("fashion_mnist", False)])
def test_grey_images_say_nothing_about_color(data: str, judged: bool) -> None:
    shares = {"mean_color_share/rung_0": 0.1, "mean_color_share/rung_1": 0.2}
    runs = {seed: TrackedRun(str(seed), "", "", "", {}, {}, dict(shares)) for seed in range(2)}
    assert any("mean color" in line for line in claims(data, {"vlae": runs})) == judged


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["workspace=nowhere"], 1, "holds no MLflow database: run preset=claim there first"),
        (["trackin.uri=x"], 2, "unknown key 'trackin.uri'"),
        (["tracking.experiment=empty"], 1, "no finished and evaluated trial"),
    ],
)
def test_what_cannot_be_written(
    words: list[str], code: int, said: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if words[0].startswith("workspace") else [f"workspace={workspace}"]
    assert main([f"out={workspace}/docs", *place, *words]) == code
    assert said in capsys.readouterr().err
    assert not (workspace / "docs").exists()
