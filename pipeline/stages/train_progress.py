"""Progress of a training: events go to MLflow and to the terminal."""

from collections.abc import Sequence

from jobs.events import Event, MetricPoint, ShardsOpened, TrainingResumed, TrainingWarning
from jobs.tracking.uploader import MetricUploader
from pipeline.terminal import Reporter, training_line


class TrainingProgress:
    """Hands the events of a training to the uploader of its MLflow run and shows them on the terminal."""

    def __init__(self, uploader: MetricUploader, report: Reporter, steps: int) -> None:
        self._uploader, self._report, self._steps = uploader, report, steps

    def __call__(self, events: Sequence[Event]) -> None:
        """Handle the events since the last call, and show what the uploader has to say."""
        for event in events:
            self._uploader.put(event)
            match event:
                case TrainingResumed():
                    if event.step:
                        self._report.line(f"{'':<9}going on from step {event.step}")
                case ShardsOpened():
                    text = f"train    {event.shards} of {event.total} shards read and verified"
                    self._report.progress(text, event.shards, event.total)
                case MetricPoint() if "train/loss" in event.metrics:
                    text = training_line(event.step, self._steps, event.metrics)
                    self._report.progress(text, event.step, self._steps)
                case TrainingWarning():
                    self._report.line(f"{'':<9}step {event.step}: {event.text}")
        for notice in self._uploader.drain_notices():
            self._report.line(f"{'':<9}{notice}")
