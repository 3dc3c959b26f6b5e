"""The searches in a workspace: their space as settings, the record of their trials, what came out. Light: no torch."""

import json
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from jobs.cli import UsageError
from jobs.errors import CorruptedError, UserError
from jobs.files import read_json, write_json
from jobs.search.space import Choices, Values, examples, parse_dimension
from jobs.search.trials import Trial, best_first
from pipeline.plan import StageStatus
from pipeline.settings.parse import SPACE, apply, read_preset, searchable_keys
from pipeline.settings.schema import GROUPS, Config, identity, run_settings
from pipeline.workspace import Workspace, fingerprint
from vlae.config import AnyModelConfig

_EXAMPLES = 500  # points of a space that are looked at before anything is done


def point_config(config: Config, values: Values) -> Config:
    """The settings of a point for a whole training: those of the command, of the point's preset, and its own.

    A point with another model than the command's has the command's settings that both models know, but what is by rung.

    Raises:
        UsageError: they do not go together, or the preset sets what a search cannot try.
    """
    own = dict(values)
    preset = read_preset(str(own.pop("preset"))) if "preset" in own else {}
    for key in preset:
        if key not in searchable_keys():
            raise UsageError(f"{SPACE}preset={values['preset']} sets {key}, which is the same for a whole search")
    updates = {**preset, **own}
    return apply(config, {**_shared(config.model, str(updates.get("model", config.model.name))), **updates})


def _shared(model: AnyModelConfig, other: str) -> dict[str, Any]:
    """The settings of a model, not the default, that another one has too: latents, or units by rung, are its own."""
    if other == model.name or other not in GROUPS["model"]:
        return {}
    own = {"name", "latent_dims", *(("hidden_dims",) if len(model.hidden_dims) > 1 else ())}
    known = GROUPS["model"][other].model_fields.keys() - own
    fields = {name: field for name, field in type(model).model_fields.items() if name in known}
    values = {name: getattr(model, name) for name in fields}
    return {f"model.{name}": value for name, value in values.items() if value != fields[name].default}


def trial_config(config: Config, values: Values) -> Config:
    """The settings of a trial: those of the command, with these values and a trial's number of steps.

    Raises:
        UsageError: the values do not go together.
    """
    tune, train = config.tune, config.train
    often = {}
    if tune.scheduler == "asha":  # which looks at a trial when it has a checkpoint
        often["train.checkpoint_every"] = min(train.checkpoint_every, tune.grace(train.steps, train.lr_warmup_steps))
    return apply(point_config(config, values), {"train.steps": tune.budget(train.steps), **often})


def check_space(config: Config) -> None:
    """See that each value of each setting goes together with some values of the others.

    Raises:
        UsageError: one does not; the message is that of the first try.
    """
    if "tune" not in config.stage:
        return
    if config.tune.steps > config.train.steps:
        raise UsageError(f"tune.steps={config.tune.steps} is more than train.steps={config.train.steps}")
    if "model.likelihood" in config.tune.param_space and "elbo" in config.tune.objectives:
        raise UsageError(
            f"{SPACE}model.likelihood: ELBOs of several likelihoods cannot be compared: search with one, or with "
            "other tune.objectives"
        )
    space = {key: parse_dimension(text) for key, text in config.tune.param_space.items()}
    wrong: dict[tuple[str, Any], str] = {}
    right: set[tuple[str, Any]] = set()
    for values in examples(space, _EXAMPLES):
        try:
            trial_config(config, values)
            right |= set(values.items())
        except UsageError as error:
            wrong = {**dict.fromkeys(values.items(), str(error)), **wrong}
    for (key, value), reason in wrong.items():
        if (key, value) not in right:
            raise UsageError(f"{SPACE}{key}={value} goes with no other value of the space: {reason}")


def _presets(config: Config) -> dict[str, Any]:
    """What is in the presets that are tried: a search with other contents is another one."""
    text = config.tune.param_space.get("preset")
    dimension = parse_dimension(text) if text else None
    return {name: read_preset(name) for name in dimension.values} if isinstance(dimension, Choices) else {}


class Search:
    """One search in the workspace, named by all that determines its trials but their number.

    Args:
        workspace: of the command's settings.

    Raises:
        UserError: there are no shards to train on.
    """

    def __init__(self, workspace: Workspace) -> None:
        config, dataset = workspace.config, workspace.dataset()
        if dataset is None:
            raise UserError("no shards to search on: add shard to the stages")
        self.config = config
        self._saving = Lock()
        fixed = {key: value for key, value in run_settings(config).items() if key not in config.tune.param_space}
        tried = [presets] if (presets := _presets(config)) else []
        key = fingerprint(fixed, identity(config.tune), *tried, dataset.fingerprint)
        self.folder = workspace.path / "searches" / f"{config.model.name}-{config.data.name}-{key}"

    @property
    def identity_file(self) -> Path:
        """What finds the search in MLflow."""
        return self.folder / "search.json"

    @property
    def scratch(self) -> Path:
        """Ray's own notes; of no use once the search has ended."""
        return self.folder / "ray"

    @property
    def figures(self) -> Path:
        """Pictures of the whole search."""
        return self.folder / "figures"

    @cached_property
    def trials(self) -> list[Trial]:
        """By their numbers.

        Raises:
            DamagedError: the record of them is.
        """
        path = self.folder / "trials.json"
        try:
            return [Trial.load(record) for record in json.loads(path.read_text())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptedError(f"{path} cannot be read ({error}): search anew with force=tune") from error

    def save(self) -> None:
        """Write the record of the trials, from any thread."""
        with self._saving:
            write_json(self.folder / "trials.json", [trial.dump() for trial in self.trials])

    def close(self, *, exhausted: bool) -> None:
        """Write that the search has ended, after all that it made."""
        write_json(self.folder / "tune.json", {"trials": self.config.tune.trials, "exhausted": exhausted})

    @property
    def found(self) -> StageStatus:
        """What earlier commands left of it."""
        record = read_json(self.folder / "tune.json") or {"trials": 0, "exhausted": False}
        if record["exhausted"] or record["trials"] >= self.config.tune.trials:
            return "done"
        return "partial" if self.trials else "nothing"

    @property
    def run_id(self) -> str:
        """MLflow's; empty if it has none."""
        return str(((read_json(self.identity_file) or {}).get("tracking") or {}).get("run_id", ""))

    def summary(self) -> dict[str, Any]:
        """What a script wants to know: MLflow's run, and the trials, best first."""
        names = ("number", "status", "step", "scores", "values", "run", "reason")
        return {
            "run_id": self.run_id,
            "trials": [{name: getattr(trial, name) for name in names} for trial in self.ranked()],
        }

    def ranked(self) -> list[Trial]:
        """The trials, best first."""
        return best_first(self.trials, self.config.tune.objectives)

    def chosen(self) -> list[Config]:
        """The settings of the trainings that later stages are about.

        Raises:
            UserError: no trial came to an end.
        """
        if self.config.tune.select == "best":
            return [self.best()]
        finished = [trial for trial in self.trials if trial.status == "finished"]
        return [point_config(self.config, trial.values) for trial in finished] or [self.best()]

    def best(self) -> Config:
        """The settings of the best trial for a whole training.

        Raises:
            UserError: no trial came to an end.
        """
        first, *_ = [*self.ranked(), Trial(-1, {}, "failed")]
        if first.status not in ("finished", "stopped") or not first.scores:
            reasons = _reasons(self.trials)
            raise UserError(f"no trial of the search in {self.folder} has a score{reasons}")
        return point_config(self.config, first.values)


def _reasons(trials: Collection[Trial]) -> str:
    """Why trials failed, each reason once."""
    found = dict.fromkeys(trial.reason for trial in trials if trial.reason)
    return f": {'; '.join(found)}" if found else ""
