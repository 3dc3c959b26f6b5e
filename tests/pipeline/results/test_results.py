"""The results page agrees with MLflow's runs: means, intervals and tests are recomputed with scipy."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from scipy import stats

from jobs.evaluation.plots import bar_chart
from jobs.tracking.query import TrackedRun
from pipeline.results.__main__ import main
from pipeline.results.page import group_by_experiment
from pipeline.results.protocol import claims, published
from pipeline.results.table import write_runs

SEEDS = range(4)
PICTURE = bar_chart([1.0], ["rung 0"], [""], "rates", "nats")


def metrics_of(model: str, seed: int) -> dict[str, float]:
    draw = np.random.default_rng([*model.encode(), seed])
    ladder = model == "vlae"
    metrics = {
        "elbo": -14_000 - 500 * (not ladder) + draw.normal(0, 20),
        "upper_rung_gain": (0.4 if ladder else 0.02) + draw.normal(0, 0.005),
        "centroid/hue": 0.01 + draw.uniform(0, 0.02),
        "centroid/digit": 0.8 + draw.normal(0, 0.05),
        "mean_color_share/rung_0": 0.95 + draw.uniform(0, 0.02),
        "mean_color_share/rung_1": 0.05 + draw.uniform(0, 0.02),
        "gibbs_distance/step_5": 3 + draw.normal(0, 0.1),
    }
    return {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def tracked(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace whose MLflow has the runs of three models, and runs that the page must ignore."""
    tmp_path = tmp_path_factory.mktemp("claim")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("claim", artifact_location=(tmp_path / "mlartifacts").as_uri())
    (tmp_path / "blocks.png").write_bytes(PICTURE)
    command = "python -m pipeline.run preset=claim tune.trials=9 workspace=/secret/folder"
    search = client.create_run(experiment, tags={"command": command}).info.run_id

    def run(
        model: str, seed: int, steps: int = 1500, status: str = "finished", dims: str = "4,4,10", **metrics: float
    ) -> None:
        tags = {
            "tune.status": status,
            "tune.value.preset": model,
            "command": f"python -m pipeline.run model={model} workspace=/secret/folder",
        }
        common = {"data_fingerprint": "f", "mlflow.parentRunId": search}
        run_id = client.create_run(experiment, tags={**tags, **common}).info.run_id
        for key, value in {"data": "digits", "seed": seed, "train.steps": steps, "dims": dims}.items():
            client.log_param(run_id, key, value)
        for name, value in metrics.items():
            client.log_metric(run_id, f"test/{name}", value)
        client.log_artifact(run_id, str(tmp_path / "blocks.png"), "figures")

    run("claim-vlae", 0, steps=10, elbo=-1.0)  # an experiment of its own
    run("claim-vlae", 7, dims="9,9", elbo=-1.0)  # of an earlier preset of that name
    for model in ("vlae", "hvae"):
        for seed in SEEDS:
            run(f"claim-{model}", seed, **metrics_of(model, seed))
    run("claim-vae", 0, **metrics_of("vae", 0))
    run("claim-vlae", 9, status="stopped", **metrics_of("vlae", 9))
    run("claim-lvae", 0)  # was not evaluated
    run("other", 0, **metrics_of("other", 0))  # not a preset of the claim
    return tmp_path


@pytest.fixture
def workspace(tracked: Path, tmp_path: Path) -> Path:
    """Return a copy of the workspace, which the test may change."""
    shutil.copy(tracked / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def cells(page: str, name: str) -> list[str]:
    """Return the cells of the first row of a metric."""
    match = re.search(rf"^\| `{re.escape(name)}` \| (.*) \|$", page, re.M)
    assert match is not None, name
    return match[1].split(" | ")


def write_page(workspace: Path) -> str:
    """Run the command, and return the section of the experiment of 1,500 steps."""
    assert main([f"out={workspace}/docs", f"workspace={workspace}"]) == 0
    return (workspace / "docs" / "results.md").read_text().partition("## digits, 1,500 steps")[2]


def numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in cell.split(" ± ")]


def test_page_cells_are_means_with_intervals(workspace: Path) -> None:
    page = write_page(workspace)
    assert "| vlae (4) | hvae (4) | vae (1) |" in page
    for name in set(metrics_of("vlae", 0)) - {"upper_rung_gain"}:
        for model, cell in zip(("vlae", "hvae"), cells(page, name), strict=False):
            values = [metrics_of(model, seed)[name] for seed in SEEDS]
            half = stats.t.ppf(0.975, 3) * stats.sem(values)
            mean, half_width = numbers(cell)
            assert mean == pytest.approx(np.mean(values), abs=0.06 * half)
            assert half_width == pytest.approx(half, rel=0.06)
    assert "upper_rung_gain" not in page  # a theorem for stacks, so not a result
    difference, p = cells(page.split("### vlae minus hvae")[1], "elbo")
    pairs = [[metrics_of(model, seed)["elbo"] for seed in SEEDS] for model in ("vlae", "hvae")]
    assert numbers(difference)[0] == pytest.approx(np.mean(np.subtract(*pairs)), rel=0.01)
    assert float(p) == pytest.approx(stats.ttest_rel(*pairs).pvalue, rel=0.06)


def test_table_keeps_models_of_other_machines(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_page(workspace)
    table = workspace / "docs" / "results" / "digits-1500.csv"
    text = table.read_text()
    only_hvae = [line for line in text.splitlines() if not line.startswith(("claim-vlae", "claim-vae"))]
    foreign = [line.replace("claim-hvae", "claim-grown") for line in only_hvae if line.startswith("claim-hvae")]
    other_data = [re.sub(r"hvae(.*,)(\w{31})\w,f,", r"lvae\1\2z,g,", line) for line in only_hvae[1:]]
    table.write_text("\n".join([*only_hvae, *foreign, *other_data]) + "\n")
    capsys.readouterr()
    page = write_page(workspace)
    assert "digits-1500: 13 runs; 4 previous rows dropped" in capsys.readouterr().out
    assert "| vlae (4) | grown (4) | hvae (4) | vae (1) |" in page
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    expected = [*4 * ["claim-vlae"], *4 * ["claim-grown"], *4 * ["claim-hvae"], "claim-vae"]
    assert [line["preset"] for line in lines] == expected
    assert [line for line in table.read_text().splitlines() if "grown" not in line] == text.splitlines()


def claim_lines(workspace: Path) -> list[str]:
    main([f"out={workspace}/docs", f"workspace={workspace}"])
    return [line for line in (workspace / "docs" / "results.md").read_text().splitlines() if line.startswith("- **")]


def test_claims_follow_the_runs(workspace: Path) -> None:
    lines = claim_lines(workspace)
    assert len(lines) == 2
    assert all(line.startswith("- **Holds**") for line in lines)
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    for run in client.search_runs([client.get_experiment_by_name("claim").experiment_id]):  # type: ignore[union-attr]
        client.log_metric(run.info.run_id, "test/mean_color_share/rung_1", 0.11, step=1)
        client.log_metric(run.info.run_id, "test/centroid/digit", 0.02, step=1)
    lines = claim_lines(workspace)
    assert len(lines) == 2
    assert all(line.startswith("- **Does not hold**") for line in lines)


def tracked_run(seed: int, metrics: dict[str, float]) -> TrackedRun:
    return TrackedRun(str(seed), "", "", "", {}, {}, metrics)


@pytest.mark.parametrize(
    ("correlation", "holds", "reverses"), [(0.5, True, False), (0.0, False, False), (-0.8, False, True)]
)
def test_claims_complexity_order_reports_reversal(correlation: float, holds: bool, reverses: bool) -> None:
    name = "centroid_complexity_spearman"
    runs = {seed: tracked_run(seed, {name: correlation + seed / 100}) for seed in (-1, 1)}
    (line, _) = claims("sprites", {"vlae": runs})
    assert ("**Holds**" in line, "reversed" in line) == (holds, reverses)


def test_claims_simple_factors_are_judged_one_by_one() -> None:
    centroids = {"centroid/digit": 0.7, "centroid/hue": 0.0, "centroid/contrast": 0.7}
    runs = {seed: tracked_run(seed, {**centroids, "centroid/luminance": 0.5 + 0.3 * seed}) for seed in (-1, 1)}
    lines = [line for line in claims("digits", {"vlae": runs}) if line]
    assert ["**Holds**" in line for line in lines] == [True, False, False]
    assert all(name in line for name, line in zip(("hue", "contrast", "luminance"), lines, strict=True))


@pytest.mark.parametrize(("bottom", "top", "holds"), [(0.95, 0.05, True), (0.85, 0.05, False), (0.95, 0.15, False)])
def test_claims_mean_color_is_of_the_bottom_rung_only(bottom: float, top: float, holds: bool) -> None:
    fractions = {"mean_color_share/rung_0": bottom, "mean_color_share/rung_1": 0.5, "mean_color_share/rung_2": top}
    runs = {seed: tracked_run(seed, fractions) for seed in range(2)}
    (line,) = [line for line in claims("digits", {"vlae": runs}) if "mean color" in line]
    assert ("**Holds**" in line) == holds


def test_claims_uncertain_complexity_order_does_not_hold() -> None:
    """The mean is positive, and the interval of the seeds includes 0."""
    runs = {seed: tracked_run(seed, {"centroid_complexity_spearman": 0.1 + 0.3 * seed}) for seed in (-1, 0, 1)}
    (line, _) = claims("sprites", {"vlae": runs})
    assert "**Does not hold**" in line


def test_group_by_experiment_keeps_the_newest_run_of_a_seed() -> None:
    params = {"data": "digits", "train.steps": "10", "seed": "0"}
    newest, oldest = (
        TrackedRun(name, "", "", "f", {"preset": "claim-vlae"}, params, {"elbo": elbo})
        for name, elbo in (("b", -1.0), ("a", -2.0))
    )
    assert group_by_experiment([newest, oldest]) == {("digits", 10): {"vlae": {0: newest}}}


def test_write_runs_failing_keeps_the_old_table(tmp_path: Path) -> None:
    params = {"data": "digits", "train.steps": "10", "seed": "0"}
    runs = [TrackedRun("a", "", "", "", {"preset": "claim-vlae"}, each, {}) for each in (params, {})]
    (tmp_path / "digits-10.csv").write_text("old")
    with pytest.raises(KeyError):
        write_runs(tmp_path / "digits-10.csv", runs)
    assert (tmp_path / "digits-10.csv").read_text() == "old"


def test_page_other_steps_are_another_section(workspace: Path) -> None:
    write_page(workspace)
    page = (workspace / "docs" / "results.md").read_text()
    assert re.findall(r"^## (.*)", page, re.M) == ["digits, 10 steps", "digits, 1,500 steps"]
    assert cells(page, "elbo") == ["-1"]


def test_page_lists_runs_and_hides_folders(workspace: Path) -> None:
    page = write_page(workspace)
    assert len(set(re.findall(r"`([0-9a-f]{32})`", page))) == 2 * len(SEEDS) + 1
    assert all("/secret" not in path.read_text() for path in (workspace / "docs").rglob("*.[cm][sd]*"))
    assert "    python -m pipeline.run model=claim-vlae" in page
    assert "    python -m pipeline.run preset=claim tune.trials=9\n" in page
    for model in ("vlae", "hvae"):
        assert (workspace / "docs" / "results" / f"digits-1500-{model}-blocks.png").read_bytes() == PICTURE
        assert f"(results/digits-1500-{model}-blocks.png)" in page


def test_page_keeps_tables_and_refuses_damaged_ones(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"out={workspace}/docs", f"workspace={workspace}"])
    page = (workspace / "docs" / "results.md").read_text()
    table = workspace / "docs" / "results" / "digits-1500.csv"
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(SEEDS) + 1
    assert all(float(line["elbo"]) == metrics_of(line["preset"].removeprefix("claim-"), int(line["seed"]))["elbo"]
               for line in lines)  # fmt: skip
    table.rename(table.with_name("sprites-1500.csv"))
    sprites = table.with_name("sprites-1500.csv")
    sprites.write_text(re.sub(r"(?m)^(claim-\w+),digits,", r"\1,sprites,", sprites.read_text()))
    main([f"out={workspace}/docs", f"workspace={workspace}"])
    both = (workspace / "docs" / "results.md").read_text()
    digits, sprites_start = both.index("## digits, 1"), both.index("## sprites, 1")
    assert digits < sprites_start
    assert both[:sprites_start].rstrip() == page.rstrip()
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
        assert "sprites-1500.csv: not a table of runs" in capsys.readouterr().err


@pytest.mark.parametrize(("mig", "holds"), [(0.09, [False, False]), (0.2, [True, False]), (0.5, [True, True])])
def test_claims_best_ladder_against_published_mig(mig: float, holds: list[bool]) -> None:
    def model(mean: float) -> dict[int, TrackedRun]:
        return {seed: tracked_run(seed, {"mig": mean + seed / 1e3}) for seed in (-1, 1)}

    lines = [line for line in claims("sprites", {"vlae": model(0.05), "grown": model(mig), "vae": model(0.9)}) if line]
    assert ["**Holds**" in line for line in lines] == holds
    assert all("grown" in line for line in lines)
    assert any(".10" in line and ".45" in line for line in published("sprites"))


def test_claims_mig_without_shape_needs_all_seeds() -> None:
    def judge(of_x: float, num_complete: int = 2) -> list[str]:
        gaps = {"mig": 0.4, "mig/shape": 0.0, "mig/scale": 0.6, "mig/orientation": 0.1, "mig/x": of_x, "mig/y": 0.7}
        runs = {seed: tracked_run(seed, gaps if seed < num_complete else {"mig": 0.4}) for seed in range(2)}
        return [line for line in claims("sprites", {"vlae": runs}) if line]

    assert ["**Holds**" in line for line in judge(0.6)] == [True, False, True]
    assert "without shape" in judge(0.6)[2]
    assert "(vlae: 0.5 ± 0)" in judge(0.6)[2]
    assert ["**Holds**" in line for line in judge(0.3)] == [True, False, False]
    assert len(judge(0.6, num_complete=1)) == 2  # not of all seeds


@pytest.mark.parametrize(("data", "judged"), [("digits", True), ("other", True), ("fashion_mnist", False)])
def test_claims_grayscale_data_skip_mean_color(data: str, judged: bool) -> None:
    fractions = {"mean_color_share/rung_0": 0.1, "mean_color_share/rung_1": 0.2}
    runs = {seed: tracked_run(seed, fractions) for seed in range(2)}
    assert any("mean color" in line for line in claims(data, {"vlae": runs})) == judged


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["workspace=nowhere"], 1, "workspace="),
        (["trackin.uri=x"], 2, "trackin.uri"),
        (["out=a"], 2, "out: given twice"),
        (["tracking.experiment=empty"], 1, "tracking.experiment=empty"),
    ],
)
def test_command_invalid_argument_writes_nothing(
    arguments: list[str], code: int, message: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = [] if arguments[0].startswith("workspace") else [f"workspace={workspace}"]
    assert main([f"out={workspace}/docs", *defaults, *arguments]) == code
    assert message in capsys.readouterr().err
    assert not (workspace / "docs").exists()
