"""The trainings and evaluations in a workspace: a folder each, with records that are whole. Light: no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.files import read_json
from jobs.store.open import open_store


@dataclass(frozen=True)
class Run:
    """One training in the workspace, named by all that determines it."""

    folder: Path
    store: str = ""  # where the checkpoints are kept, if not in the folder: an address

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; where they are kept in a store, of copies of them once training has ended."""
        return self.folder / "checkpoints"

    @property
    def checkpoint_place(self) -> str:
        """Address of the checkpoints."""
        return f"{self.store}/runs/{self.folder.name}/checkpoints" if self.store else str(self.checkpoints)

    def checkpoint(self, name: str) -> Path:
        """A checkpoint of a finished training by the name of its folder: where it lies, or the copy of one on S3."""
        return open_store(self.checkpoint_place).local_path(name) or self.checkpoints / name

    @property
    def scratch(self) -> Path:
        """Ray's own notes; of no use once the training has ended."""
        return self.folder / "ray"

    @property
    def figures(self) -> Path:
        """Pictures of the last evaluation."""
        return self.folder / "figures"

    @property
    def explorer(self) -> Path:
        """The page to explore the rungs with, of the last evaluation."""
        return self.folder / "explorer.html"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return any(True for _ in open_store(self.checkpoint_place).folders("step-"))

    def read(self, name: str) -> dict[str, Any] | None:
        """A record (`run`, `train`, `evaluate`) that was written whole, or None."""
        return read_json(self.folder / f"{name}.json")


def siblings(run: Run, settings: Mapping[str, str], data_fingerprint: str) -> list[Path]:
    """Checkpoints of finished trainings beside `run` that differ from it in the seed alone, in order of their seeds.

    Args:
        run: one training.
        settings: that define it, in command-line spelling.
        data_fingerprint: of the dataset that it was trained on.
    """
    found = {}
    for folder in run.folder.parent.iterdir():
        other = Run(folder, run.store)
        record, trained = other.read("run"), other.read("train")
        if folder == run.folder or not record or not trained or record.get("data_fingerprint") != data_fingerprint:
            continue
        if {**record["settings"], "seed": ""} == {**settings, "seed": ""}:
            checkpoint = other.checkpoint(trained["checkpoint"])
            if checkpoint.is_dir():  # else it was trained with another store
                found[int(record["settings"]["seed"])] = checkpoint
    return [found[seed] for seed in sorted(found)]
