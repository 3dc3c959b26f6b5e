"""Run the stages. Imported once the settings are valid and something has to run: it loads Ray, torch and MLflow."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset

from jobs.board import Message, Point, Started
from jobs.checkpoint import export_model, read_meta
from jobs.cluster import Resources, cluster
from jobs.data.manifest import Manifest, write_json
from jobs.errors import UserError
from jobs.evaluate import Evaluation, run_evaluation
from jobs.loop import TrainJob
from jobs.shard import run_sharding
from jobs.tracking import CurveWriter, Registered, Tracker
from jobs.train import run_training
from pipeline.config import Stage, run_settings
from pipeline.report import Reporter, score_table, training_line
from pipeline.workspace import Run, Workspace


class Session:
    """The stages of one command. Ray and MLflow start when the first stage needs them, and once.

    Args:
        workspace: of the command's settings.
        report: where progress goes.
        stack: closes what the session opened.
    """

    def __init__(self, workspace: Workspace, report: Reporter, stack: ExitStack) -> None:
        self._workspace, self._config, self._report, self._stack = workspace, workspace.config, report, stack

    @cached_property
    def _resources(self) -> Resources:
        return self._stack.enter_context(cluster(self._config.ray))

    def _start_ray(self) -> Resources:
        return self._resources

    @cached_property
    def _tracker(self) -> Tracker:
        return Tracker(self._config.tracking, self._workspace.path)

    def run(self, stage: Stage, *, anew: bool) -> None:
        """Run one stage to its end; with `anew` what an earlier command left of it is removed first."""
        stages: dict[Stage, Callable[[], None]] = {
            "shard": self._shard,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        folder = self._workspace.data_folder if stage == "shard" else self._run.folder
        with self._workspace.lock(folder):
            if anew and stage != "evaluate":
                shutil.rmtree(folder, ignore_errors=True)
            stages[stage]()

    def _shard(self) -> None:
        source = self._workspace.open_source(fetch=True)
        total = source.num_samples
        folder = self._workspace.data_folder
        self._start_ray()
        manifest = run_sharding(
            source,
            self._config.data,
            folder,
            lambda done: self._report.progress(f"shard    {done:,} of {total:,} samples"),
        )
        counts = ", ".join(f"{manifest.num_samples(split):,} {split}" for split in ("train", "validation", "test"))
        size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
        self._report.done("shard", f"{counts}; {len(manifest.shards)} tars, {size:.0f} MB in {folder}")

    @property
    def _dataset(self) -> Manifest:
        manifest = self._workspace.dataset()
        if manifest is None:
            raise UserError(f"no dataset in {self._workspace.data_folder}: add shard to the stages")
        return manifest

    @property
    def _run(self) -> Run:
        return self._workspace.run(self._dataset)

    def _train(self) -> None:
        run, config = self._run, self._config
        manifest = self._dataset
        run_id = self._mlflow_run(run, manifest)
        job = TrainJob(
            model=config.model,
            objective=config.objective,
            train=config.train,
            seed=config.seed,
            data_folder=self._workspace.data_folder,
            checkpoint_folder=run.checkpoints,
        )
        follow = _Follower(self._tracker.curve(run_id), self._report, config.train.steps)
        try:
            checkpoint = run_training(job, self._resources, run.scratch, follow)
        except KeyboardInterrupt:
            self._tracker.end_run(run_id, "KILLED")
            raise
        except UserError:
            self._tracker.end_run(run_id, "FAILED")
            raise
        shutil.rmtree(run.scratch, ignore_errors=True)
        meta = read_meta(checkpoint)
        self._tracker.end_run(run_id, "FINISHED", {"weights_sha256": meta["weights_sha256"]})
        record = {
            "run_id": run_id,
            "checkpoint": str(checkpoint),
            "weights_sha256": meta["weights_sha256"],
            "step": meta["step"],
        }
        write_json(run.folder / "train.json", record)
        self._report.done("train", f"step {meta['step']}, checkpoint {checkpoint}")

    def _mlflow_run(self, run: Run, manifest: Manifest) -> str:
        """The run's id; the key that finds it is written first, so that no kill leaves a second run."""
        run.folder.mkdir(parents=True, exist_ok=True)
        record = run.read("run")
        if record is None:
            record = {"key": uuid.uuid4().hex, "settings": run_settings(self._config)}
            write_json(run.folder / "run.json", record)
        dataset = Dataset(
            name=self._config.data.name,
            digest=manifest.fingerprint,
            source_type="local",
            source=str(self._workspace.data_folder),
        )
        name = f"{self._config.model.name}-{self._config.data.name}"
        return self._tracker.start_run(name, record["settings"], dataset, key=record["key"])

    def _evaluate(self) -> None:
        run, config = self._run, self._config
        trained = run.read("train")
        if trained is None:
            raise UserError(f"{run.folder} holds no finished training: add train to the stages")
        self._report.progress("evaluate scores and pictures ...")
        checkpoint = Path(trained["checkpoint"])
        evaluation = run_evaluation(checkpoint, self._workspace.data_folder, config.evaluate, self._resources)
        run.figures.mkdir(exist_ok=True)
        for name, png in evaluation.figures.items():
            (run.figures / f"{name}.png").write_bytes(png)
        registered = self._record(run, trained, evaluation)
        record = {
            "key": self._workspace.evaluate_key(),
            "weights_sha256": trained["weights_sha256"],
            "model_uri": registered.uri,
            "scores": evaluation.scores,
        }
        write_json(run.folder / "evaluate.json", record)
        self._report.done("evaluate", score_table(evaluation.scores))
        alias = "is the champion" if registered.champion else "is not the champion"
        self._report.line(f"{'':<9}{registered.uri} {alias} ({registered.note}); pictures in {run.figures}")

    def _record(self, run: Run, trained: dict[str, Any], evaluation: Evaluation) -> Registered:
        """Scores, pictures and the model, to MLflow."""
        config, run_id = self._config, str(trained["run_id"])
        with tempfile.TemporaryDirectory() as folder:
            export_model(Path(trained["checkpoint"]), Path(folder))
            model_id = self._tracker.log_model(run_id, config.model.name, Path(folder), run_settings(config))
        scores = {f"test/{name}": value for name, value in evaluation.scores.items()}
        point = Point(int(trained["step"]), time.time_ns() // 1_000_000, scores)
        self._tracker.log_points(run_id, [point], model_id=model_id)
        self._tracker.log_folder(run_id, run.figures, "figures")
        tags = {"data_fingerprint": self._dataset.fingerprint, "weights_sha256": trained["weights_sha256"]}
        name = config.evaluate.model_name or config.data.name
        return self._tracker.register(run_id, model_id, name, tags, evaluation.scores, config.evaluate.select_by)


class _Follower:
    """Takes the workers' messages to the tracking server and to the screen."""

    def __init__(self, curve: CurveWriter, report: Reporter, steps: int) -> None:
        self._curve, self._report, self._steps = curve, report, steps
        self._clock, self._from = time.monotonic(), 0

    def __call__(self, messages: list[Message]) -> None:
        for message in messages:
            self._curve.take(message)
            if isinstance(message, Started):
                self._clock, self._from = time.monotonic(), message.step
                if message.step:
                    self._report.line(f"{'':<9}going on from step {message.step}")
            elif isinstance(message, Point) and "train/loss" in message.metrics:
                pace = (time.monotonic() - self._clock) / max(1, message.step - self._from)
                self._report.progress(training_line(message.step, self._steps, message.metrics, pace))
