"""Suggest points to Ray Tune: Optuna proposes them, no training is tried twice, earlier trials come first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from jobs.errors import UserError
from jobs.search.config import TuneConfig
from jobs.search.space import Choices, Dimension, Values, grid, parse_dimension
from jobs.search.trials import Trial, point_key

# Proposals of TPE for one new and valid point. TPE keeps proposing points near the best ones, so a random sampler
# takes over after that.
_MAX_PROPOSALS = 50
_MAX_RANDOM_PROPOSALS = 1000


class OptunaSearcher(Searcher):
    """Suggest `{"number": ..., "values": ...}` to Ray Tune and report the results to Optuna.

    Args:
        config: The space and the algorithm.
        trials: Trials of earlier commands. They are suggested again first and answer from their records, which brings
            Optuna and the scheduler into their earlier state.
        training_name: Returns a name of the training at a point, or None if the point's settings are invalid together.
        on_trial_start: Called with number and values before a trial starts. A UserError ends the search, see `error`.
        find_result: Returns the record of a trial that is done, by its number.

    Attributes:
        exhausted: Whether the space has no further point.

    References:
        Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (TPE).
        Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019, arXiv:1907.10902.
    """

    def __init__(
        self,
        config: TuneConfig,
        trials: Sequence[Trial],
        training_name: Callable[[Values], str | None],
        on_trial_start: Callable[[int, Values], None],
        find_result: Callable[[int], Trial | None],
    ) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config, self._training_name = config, training_name
        self._on_trial_start, self._find_result = on_trial_start, find_result
        space = {key: parse_dimension(text) for key, text in config.param_space.items()}
        self._distributions = {key: distribution(dimension) for key, dimension in space.items()}
        seed = config.seed + len(trials)  # else each command would propose the first points again
        # With constant_liar, running trials count as poor ones, so that concurrent trials differ.
        tpe = config.algorithm == "tpe"
        self._sampler = TPESampler(seed=seed, multivariate=True, constant_liar=True) if tpe else RandomSampler(seed)
        self._study = optuna.create_study(directions=["maximize"] * len(config.objectives), sampler=self._sampler)
        self._queue: Iterator[Values] = chain(
            (trial.values for trial in trials), grid(space) if config.algorithm == "grid" else ()
        )
        self._numbers = {trial.key: trial.number for trial in trials}
        self._next_number = max(self._numbers.values(), default=-1) + 1
        self._running: dict[str, tuple[int, optuna.Trial]] = {}  # by Ray's id of the trial
        self._tried: set[str] = set()  # names of trainings
        self.error: UserError | None = None
        self.exhausted = False

    def suggest(self, trial_id: str) -> Any:
        """Return the next point, or FINISHED if there is none."""
        try:
            return self._suggest(trial_id)
        except UserError as error:
            self.error = error
            return Searcher.FINISHED
        finally:
            self._study.sampler = self._sampler

    def _suggest(self, trial_id: str) -> Any:
        for attempt in range(_MAX_PROPOSALS + _MAX_RANDOM_PROPOSALS):
            if attempt == _MAX_PROPOSALS:
                self._study.sampler = RandomSampler(seed=self._config.seed + self._next_number)
            values = next(self._queue, None)
            if values is not None:
                self._study.enqueue_trial(values)
            elif self._config.algorithm == "grid":
                break
            trial = self._study.ask(self._distributions)
            name = self._training_name(trial.params)
            if name is None or name in self._tried:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            number = self._numbers.get(point_key(trial.params), self._next_number)
            self._on_trial_start(number, dict(trial.params))
            self._tried.add(name)
            self._next_number = max(self._next_number, number + 1)
            self._running[trial_id] = number, trial
            return {"number": number, "values": dict(trial.params)}
        self.exhausted = True
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False, **_: Any
    ) -> None:
        """Report the last metrics of a trial to Optuna, those of a trial that was stopped early as well."""
        number, trial = self._running.pop(trial_id)
        record = self._find_result(number) or Trial(number, {}, reports=[(1, dict(result or {}))])
        values = record.objective_values(self._config.objectives)
        if error or values is None or record.status == "failed":
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, values)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, because the record of the trials restores a search, not Ray's copy."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, see `__getstate__`."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return a dimension of the search space as Optuna's distribution."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.values)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
