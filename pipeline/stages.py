"""Run the stages. Imported once the settings are valid and something has to run: it loads Ray, torch and MLflow."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset
from ray.exceptions import RayError, RayTaskError

from jobs.checkpoint import export_model, read_history, read_meta
from jobs.cluster import Resources, cluster
from jobs.data.manifest import MANIFEST, Manifest
from jobs.errors import AGAIN, UserError
from jobs.evaluate import Evaluation, run_evaluation
from jobs.files import remove_folder, write_json
from jobs.loop import TrainJob
from jobs.measures import label_name
from jobs.messages import Point, Started
from jobs.registry import Registered, register
from jobs.shard import run_sharding
from jobs.tracking import Tracker
from jobs.train import run_training
from pipeline.config import Stage, run_settings
from pipeline.follow import Follower
from pipeline.report import Reporter, score_table
from pipeline.workspace import Run, Workspace
from vlae.build import num_parameters

# How many factors that vary a score needs.
_FACTORS_NEEDED = {"elbo": 0, "mig": 1, "mig_sup": 2}


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

    @cached_property
    def _tracker(self) -> Tracker:
        return Tracker(self._config.tracking, self._workspace.path)

    @cached_property
    def _dataset(self) -> Manifest:
        manifest = self._workspace.dataset()
        if manifest is None:
            raise UserError(f"no shards in {self._workspace.access.url}: add shard to the stages")
        return manifest

    @cached_property
    def _run(self) -> Run:
        return self._workspace.run(self._dataset)

    def run(self, stage: Stage, *, anew: bool) -> None:
        """Run one stage to its end; with `anew` what an earlier command left of it is removed first.

        Raises:
            UserError: the user can mend it; what was finished is kept.
        """
        stages: dict[Stage, Callable[[], None]] = {
            "shard": self._shard,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        data_name = self._workspace.data_name
        with ExitStack() as locks:
            if stage != "shard":
                locks.enter_context(self._workspace.lock(data_name, shared=True))
            locks.enter_context(self._workspace.lock(data_name if stage == "shard" else self._run.folder.name))
            if anew:
                self._forget(stage)
            try:
                stages[stage]()
            except RayTaskError:
                raise  # a mistake of ours: its traceback is wanted
            except RayError as error:
                reason = str(error).strip().split("\n")[0]
                raise UserError(f"Ray failed: {reason}; run {AGAIN} again to go on") from error

    def _forget(self, stage: Stage) -> None:
        """Remove what an earlier command left of a stage."""
        if stage == "evaluate":
            (self._run.folder / "evaluate.json").unlink(missing_ok=True)
        elif stage == "train":
            remove_folder(self._run.folder)
        elif store := self._workspace.data_store:
            store.clear(MANIFEST)

    def _shard(self) -> None:
        source = self._workspace.fetch_source()
        if "train" in self._config.stage:
            self._count_parameters(source.image_shape)  # what does not fit is said before the work
        self._report.progress("shard    checking the source ...")
        for remark in source.check():
            self._report.line(f"{'':<9}note: {remark}")
        total, url = source.num_samples, self._workspace.access.url
        manifest = run_sharding(
            source,
            self._config.data,
            url,
            self._resources,
            lambda done: self._report.progress(f"shard    {done:,} of {total:,} samples"),
        )
        counts = ", ".join(f"{manifest.num_samples(split):,} {split}" for split in ("train", "validation", "test"))
        size = sum(shard.num_bytes for shard in manifest.shards) / 1e6
        self._report.done("shard", f"{counts}; {len(manifest.shards)} tars, {size:.0f} MB in {url}")

    def _train(self) -> None:
        run, config = self._run, self._config
        if "evaluate" in config.stage:
            self._check_evaluation()
        size = self._count_parameters(self._dataset.image_shape)
        run_id = self._mlflow_run(run)
        job = TrainJob(
            model=config.model,
            objective=config.objective,
            progressive=config.progressive,
            train=config.train,
            seed=config.seed,
            data=self._workspace.access,
            checkpoint_folder=run.checkpoints,
        )
        curve = self._tracker.curve(run_id)
        self._report.progress(f"train    {size:,} parameters; starting the workers ...")
        self._tracker.resume_run(run_id)
        try:
            follow = Follower(curve, self._report, config.train.steps)
            checkpoint = run_training(job, self._resources, run.scratch, follow)
            meta = read_meta(checkpoint)
            curve.take(Started(meta["step"], read_history(checkpoint)))  # what MLflow may still lack
            self._tracker.end_run(run_id, "FINISHED", {"weights_sha256": meta["weights_sha256"]})
            record = {name: meta[name] for name in ("step", "weights_sha256")}
            write_json(run.folder / "train.json", {"run_id": run_id, "checkpoint": checkpoint.name, **record})
        except BaseException as error:
            with suppress(UserError):  # the first error is the one to tell
                self._tracker.end_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        finally:
            shutil.rmtree(run.scratch, ignore_errors=True)
        self._report.done("train", f"step {meta['step']}, checkpoint {checkpoint}")

    def _count_parameters(self, image_shape: tuple[int, int, int]) -> int:
        """Trained parameters of the model for images (height, width, channels), if it can be built for them."""
        height, width, channels = image_shape
        try:
            return num_parameters(self._config.model, (channels, height, width))
        except ValueError as error:
            raise UserError(str(error)) from error

    def _check_evaluation(self) -> None:
        """See that the dataset has the factors that the evaluation asks for."""
        label_name(self._config.evaluate.label, [factor.name for factor in self._dataset.factors])
        select_by = self._config.evaluate.select_by
        varying = sum(len(factor.values) > 1 for factor in self._dataset.factors)
        if varying < _FACTORS_NEEDED[select_by]:
            raise UserError(
                f"evaluate.select_by={select_by} needs {_FACTORS_NEEDED[select_by]} factors that vary, and this "
                f"dataset has {varying}: use evaluate.select_by=elbo"
            )

    def _mlflow_run(self, run: Run) -> str:
        """The run's id; the key that finds it is written first, so that no kill leaves a second run."""
        run.folder.mkdir(parents=True, exist_ok=True)
        record = run.read("run")
        if record is None:
            record = {"key": uuid.uuid4().hex, "settings": run_settings(self._config)}
            write_json(run.folder / "run.json", record)
        dataset = Dataset(
            name=self._config.data.name,
            digest=self._dataset.fingerprint,
            source_type="s3" if self._workspace.access.url.startswith("s3:") else "local",
            source=self._workspace.access.url,
        )
        name = f"{self._config.model.name}-{self._config.data.name}"
        return self._tracker.start_run(name, record["settings"], dataset, key=record["key"])

    def _evaluate(self) -> None:
        run, config = self._run, self._config
        trained = run.read("train")
        if trained is None:
            raise UserError(f"{run.folder} holds no finished training: add train to the stages")
        self._check_evaluation()
        self._report.progress("evaluate scores and pictures ...")
        checkpoint = run.checkpoints / trained["checkpoint"]
        use_gpu = config.train.device != "cpu"
        evaluation = run_evaluation(
            checkpoint, self._workspace.access, config.evaluate, self._resources, use_gpu=use_gpu
        )
        run.figures.mkdir(exist_ok=True)
        for name, png in evaluation.figures.items():
            (run.figures / f"{name}.png").write_bytes(png)
        registered = self._record(run, checkpoint, trained, evaluation)
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

    def _record(self, run: Run, checkpoint: Path, trained: dict[str, Any], evaluation: Evaluation) -> Registered:
        """Scores, pictures and the model, to MLflow; the curve too, if this MLflow has none of this training."""
        config, tracker = self._config, self._tracker
        run_id = self._mlflow_run(run)
        tracker.curve(run_id).take(Started(int(trained["step"]), read_history(checkpoint)))
        tags = {
            "data_fingerprint": self._dataset.fingerprint,
            "likelihood": config.model.likelihood,
            "weights_sha256": trained["weights_sha256"],
        }
        with tempfile.TemporaryDirectory() as folder:
            export_model(checkpoint, Path(folder))
            registered = register(
                tracker,
                run_id,
                config.evaluate.model_name or config.data.name,
                Path(folder),
                params=run_settings(config),
                tags=tags,
                scores=evaluation.scores,
                select_by=config.evaluate.select_by,
            )
        scores = {f"test/{name}": value for name, value in evaluation.scores.items()}
        point = Point(int(trained["step"]), time.time_ns() // 1_000_000, scores)
        tracker.log_points(run_id, [point], model_id=registered.model_id)
        tracker.log_folder(run_id, run.figures, "figures")
        tracker.end_run(run_id, "FINISHED")
        if run_id != trained["run_id"]:
            write_json(run.folder / "train.json", {**trained, "run_id": run_id})
        return registered
