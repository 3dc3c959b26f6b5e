"""Which point a search tries next: Optuna proposes, none is tried twice, and earlier commands' points come first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher

from jobs.errors import UserError
from jobs.search.config import TuneConfig
from jobs.search.space import Choices, Dimension, Values, grid, parse_dimension
from jobs.search.trials import Trial, point_key, vector

_TRIES = 50  # of TPE for a point that is new and fits; it dwells on what is good, and chance then has a few more
_CHANCES = 1000


class OptunaSearcher(Searcher):
    """Proposes `{"number": ..., "values": ...}` to Ray Tune and tells Optuna what became of it.

    Args:
        config: the space, and who proposes.
        known: trials of earlier commands, which are proposed again first: they answer from their records, so that
            Optuna and the scheduler are where they were.
        name: of the training of a point; None if its settings do not go together: it is not part of the space.
        begin: called with number and values before a trial is begun; a UserError ends the search.
        outcome: what is known of a trial by its number, once it has ended.
    """

    def __init__(
        self,
        config: TuneConfig,
        known: Sequence[Trial],
        name: Callable[[Values], str | None],
        begin: Callable[[int, Values], None],
        outcome: Callable[[int], Trial | None],
    ) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config, self._name, self._begin, self._outcome = config, name, begin, outcome
        space = {key: parse_dimension(text) for key, text in config.param_space.items()}
        self._space = {key: _distribution(dimension) for key, dimension in space.items()}
        # Each command draws from another place: with the same seed it would propose its first points again.
        self._study = optuna.create_study(
            directions=["maximize"] * len(config.objectives), sampler=_sampler(config, config.seed + len(known))
        )
        listed = grid(space) if config.algorithm == "grid" else iter(())
        self._listed: Iterator[Values] = chain((trial.values for trial in known), listed)
        self._numbers = {trial.key: trial.number for trial in known}
        self._next = max(self._numbers.values(), default=-1) + 1  # number of a new one
        self._asked: dict[str, tuple[int, optuna.Trial]] = {}  # by Ray's id
        self._seen: set[str] = set()  # names
        self.error: UserError | None = None  # why no further trial is begun
        self.exhausted = False  # whether there is no point left

    def suggest(self, trial_id: str) -> Any:
        """The next point, or FINISHED if there is none."""
        proposer = self._study.sampler
        try:
            return self._propose(trial_id)
        except UserError as error:
            self.error = error
            return Searcher.FINISHED
        finally:
            self._study.sampler = proposer

    def _propose(self, trial_id: str) -> Any:
        for tried in range(_TRIES + _CHANCES):
            if tried == _TRIES:
                self._study.sampler = RandomSampler(seed=self._config.seed + self._next)
            values = next(self._listed, None)
            if values is not None:
                self._study.enqueue_trial(values)
            elif self._config.algorithm == "grid":
                break
            trial = self._study.ask(self._space)
            name = self._name(trial.params)
            if name is None or name in self._seen:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            number = self._numbers.get(point_key(trial.params), self._next)
            self._begin(number, dict(trial.params))
            self._seen.add(name)
            self._next = max(self._next, number + 1)
            self._asked[trial_id] = number, trial
            return {"number": number, "values": dict(trial.params)}
        self.exhausted = True
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False, **_: Any
    ) -> None:
        """Tell Optuna the scores, of an early stop too: the last there are."""
        number, trial = self._asked.pop(trial_id)
        ended = self._outcome(number)
        scores = dict(result or {}) if ended is None else ended.scores
        found = vector(Trial(number, {}, reports=[(1, scores)]), self._config.objectives)
        if error or found is None or (ended is not None and ended.status == "failed"):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, found)

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps nothing of a search: the pipeline's own record of its trials restores it."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.values)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _sampler(config: TuneConfig, seed: int) -> BaseSampler:
    if config.algorithm == "tpe":
        # Trials that are under way count as poor ones, so that those beside them are not the same.
        return TPESampler(seed=seed, multivariate=True, constant_liar=True)
    return RandomSampler(seed=seed)
