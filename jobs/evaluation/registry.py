"""The metric registry: every metric of the evaluation, once.

The evaluation computes what is listed here, the search and the champion choose from it, and the run page, the results
page and docs/metrics.md show it. A new metric is a function in `vlae/metrics/` and one entry in `METRICS`
(docs/extending.md has an example).

Only strings name the functions, because the settings import this module and the command starts in under a second.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import attrgetter
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

Group = Literal[
    "likelihood", "hierarchy", "model", "dci", "probes", "interventions", "classifiers", "information", "search"
]

# Groups that need codes and factors only, each one Ray task; the longest is first, because it runs beside the others.
METRIC_GROUPS: tuple[Group, ...] = ("dci", "probes", "interventions", "classifiers", "information")

MIN_IMAGES = 20  # of the train and of the test split, below which a probe or a distance is noise

SECTIONS = {
    "Likelihood and rates": "Nats per image of the test split.",
    "Where factors lie": "The level centroid of a factor is 0 in the bottom rung and 1 in the top rung.",
    "Hierarchy": "One number for the matrix of rungs and factors.",
    "Color and class": (
        "`mean_color_share` is the fraction of a rung's effect on the image that is mean color (mean gray of gray "
        "images). `class_flip_rate` is how often new noise in a rung changes the class that a classifier predicts."
    ),
    "Gibbs chains and top rungs": "Frechet distances are to test images, in a fixed random feature space.",
    "Disentanglement": (
        "Metrics of the posterior means of all rungs side by side. `mig/FACTOR` is of one factor; `mig_ica` is the MIG "
        "after each rung is rotated by ICA."
    ),
    "Without factors": "Metrics that need no factors.",
}

# What a placeholder in a metric's name stands for.
_PLACEHOLDERS = {
    "rung_l": r"rung_\d+",
    "FACTOR": r"(?!rung_\d+$)[^/]+",
    "step_n": r"step_\d+",
    "n": r"\d+",
    "k": r"\d+",
}
_PLACEHOLDER = re.compile(rf"(?<=/)({'|'.join(_PLACEHOLDERS)})(?=/|$)")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, or a family of metrics whose name has placeholders.

    Attributes:
        name: Name after `test/` in MLflow. `rung_l` and `FACTOR` stand for each rung and factor, `step_n`, `n` and `k`
            for numbers.
        function: Entry point `module:function` of the function that computes the metric.
        inputs: Attributes of `jobs.evaluation.inputs.EncodedDataset` that are the function's positional arguments, such
            as `codes.samples`. Empty where the evaluation computes the result itself, because the result needs the
            model or is expensive.
        keywords: Attributes of the dataset that are passed as the keyword arguments of the same names.
        options: Constant keyword arguments.
        field: Attribute or key of the function's result that is the metric. Empty: the result itself.
        group: Metrics of one group are computed by the same task.
        min_factors: Number of varying factors that the metric needs.
        min_images: Number of images in the train and in the test split below which the metric is not computed.
        per_rung: Whether the metric is also computed of each rung alone, as `NAME/rung_l`.
        range: Values to expect, such as `0..1` or `nats`.
        higher_is_better: None for a metric that describes and does not rank.
        headline: What the metric says, in the short table of the run page. Empty: not in that table.
        searchable: Whether a search can maximize the metric. A searchable headline metric can choose the champion. A
            search encodes validation images only, so `inputs` must not need train images.
        in_results: Whether the results page has the metric.
        section: Section of docs/metrics.md and of the results page.
        doc: Definition, one or two sentences with the source.
    """

    name: str
    _: dataclasses.KW_ONLY
    function: str
    inputs: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    field: str = ""
    group: Group = "information"
    min_factors: int = 0
    min_images: int = MIN_IMAGES
    per_rung: bool = False
    range: str
    higher_is_better: bool | None = True
    headline: str = ""
    searchable: bool = False
    in_results: bool = False
    section: str = "Disentanglement"
    doc: str

    def __post_init__(self) -> None:
        if self.searchable and any("train_" in name for name in self.inputs):
            raise ValueError(f"{self.name}: searchable, and its inputs need train images. Set searchable=False.")

    @property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression of the names that the metric is logged under, those of single rungs excepted."""
        literals = _PLACEHOLDER.split(self.name)
        return re.compile("".join(_PLACEHOLDERS.get(text, re.escape(text)) for text in literals))

    def compute(self, inputs: object, results: dict[str, Any], factors: Iterable[str]) -> dict[str, float]:
        """Return the metric's values by their full names, not all finite.

        The values are empty if the function's result is None or a mapping without the metric's field.

        Args:
            inputs: Object with the attributes that `inputs` and `keywords` name.
            results: Results of functions by entry point. A missing one is computed and added, so metrics share calls.
            factors: Names of the factors.
        """
        key = f"{self.function}{dict(self.options) or ''}"
        if key not in results:
            function: Callable[..., Any] = resolve_name(self.function)
            arguments = [attrgetter(path)(inputs) for path in self.inputs]
            keywords = {path.rpartition(".")[2]: attrgetter(path)(inputs) for path in self.keywords}
            results[key] = function(*arguments, **keywords, **self.options)
        value = results[key]
        if self.field and value is not None:
            value = value.get(self.field) if isinstance(value, Mapping) else getattr(value, self.field)
        return {} if value is None else dict(_expand(self.name, value, tuple(factors)))


def _expand(name: str, value: Any, factors: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yield each entry of an array or mapping with the name that it has instead of the first placeholder."""
    match = _PLACEHOLDER.search(name)
    if match is None:
        yield name, float(value)
        return
    prefix = {"rung_l": "rung_", "step_n": "step_"}.get(match[0], "")
    if match[0] == "FACTOR":
        entries: Iterable[tuple[Any, Any]] = zip(factors, value, strict=True)
    else:
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, entry in entries:
        yield from _expand(f"{name[: match.start()]}{prefix}{key}{name[match.end() :]}", entry, factors)


# Results that the evaluation passes to `Metric.compute`.
TOTAL_EFFECTS = "vlae.total_effects:total_effects"
IMPORTANCE_WEIGHTED_BOUND = "vlae.objective:importance_weighted_bound"
GIBBS_CURVE = "vlae.gibbs:gibbs_curve"
TOP_K_CURVE = "vlae.gibbs:top_k_curve"
CLASSIFIER_ACCURACY = "vlae.classifier:accuracy"
NUM_PARAMETERS = "vlae.models.base:HierarchicalModel.num_parameters"
FACTOR_COMPLEXITY = "vlae.metrics.complexity:factor_complexity"
RUNG_INFORMATION = "vlae.metrics.rung_information:rung_information"

_CLASSIFIER_INPUTS = ("train_means", "train_factors", "test_means", "test_factors")

# Metrics that share a function or its arguments.
_elbo = partial(
    Metric,
    function="jobs.evaluation.model_metrics:likelihood_terms",
    inputs=("codes", "dimensions", "discrete"),
    group="likelihood",
    min_images=0,
    section="Likelihood and rates",
)
_rates = partial(
    Metric,
    inputs=("codes.kl_dims",),
    group="likelihood",
    min_images=0,
    section="Likelihood and rates",
    higher_is_better=None,
)
_bound = partial(
    Metric, function=IMPORTANCE_WEIGHTED_BOUND, group="model", min_images=0, section="Likelihood and rates"
)
_factor = partial(Metric, group="hierarchy", min_factors=1, section="Where factors lie", higher_is_better=None)
_probe = partial(
    Metric,
    function="vlae.metrics.probes:probe_rungs",
    inputs=("probe_train_samples", "probe_train_factors", "codes.samples", "factors"),
    keywords=("seed",),
    group="probes",
    min_factors=1,
    section="Where factors lie",
    higher_is_better=None,
)
_rung = partial(Metric, inputs=("information",), group="hierarchy", min_factors=1, section="Hierarchy")
_effect = partial(
    Metric, function=TOTAL_EFFECTS, group="model", min_images=0, section="Color and class", higher_is_better=None
)
_gibbs = partial(
    Metric, function=GIBBS_CURVE, group="model", section="Gibbs chains and top rungs", higher_is_better=False
)
_pair = partial(Metric, inputs=("means", "factors"), min_factors=1)
_dci = partial(
    Metric,
    function="jobs.evaluation.code_metrics:dci_with_rungs",
    inputs=(*_CLASSIFIER_INPUTS, "rung_dims"),
    keywords=("seed",),
    group="dci",
    min_factors=1,
)
_info_mec = partial(
    Metric,
    function="vlae.metrics.infomec:info_mec_scores",
    inputs=("test_means", "test_factors"),
    keywords=("seed",),
    group="interventions",
    min_factors=1,
)
_classifier = partial(Metric, inputs=_CLASSIFIER_INPUTS, group="classifiers", min_factors=1)
_intervention = partial(_pair, group="interventions")
_unsupervised = partial(Metric, inputs=("means",), per_rung=True, section="Without factors", higher_is_better=False)

# fmt: off
METRICS: tuple[Metric, ...] = (
    _elbo("elbo", field="elbo", range="nats per image", headline="evidence lower bound, higher is better",
          searchable=True, in_results=True, doc="Evidence lower bound, E log p(x|z) - KL(q(z|x) ‖ p(z))."),
    _bound("iwae_bound", field="iwae_bound", range="nats per image", in_results=True,
           doc="Importance-weighted bound of log p(x) with `evaluate.iwae_samples` samples, of "
           "`evaluate.iwae_images` images (Burda et al. 2016)."),
    _bound("iwae_bound_of_one", field="iwae_bound_of_one", range="nats per image",
           doc="The same bound with one sample, an estimate of the ELBO of the same images."),
    _elbo("bits_per_dim", field="bits_per_dim", range="0..8", higher_is_better=False,
          headline="negative ELBO in bits per pixel and channel, lower is better", in_results=True,
          doc="-ELBO in bits per pixel and channel. Logged where p(x|z) is a distribution of 8-bit values."),
    _elbo("reconstruction", field="reconstruction", range="nats per image", higher_is_better=False,
          doc="-E log p(x|z), the first term of the negative ELBO."),
    _elbo("kl", field="kl", range="nats per image", higher_is_better=None, headline="rate of all rungs together",
          doc="Rate of all rungs, the second term of the negative ELBO."),
    _rates("kl/rung_l", function="vlae.metrics.rates:rates", range="nats per image", in_results=True,
           doc="Rate of the rung: mean KL from the posterior to the prior."),
    _rates("active_units/rung_l", function="vlae.metrics.rates:active_units", keywords=("codes.threshold",),
           range="0..D_l", in_results=True,
           doc="Number of active latents of the rung: mean KL above that of a collapsed latent plus 0.01 nat. The "
           "KL of a collapsed latent is 0 under a normal prior and above 0 with `model.prior_shape` above 2."),
    Metric("num_parameters", function=NUM_PARAMETERS, group="model", min_images=0,
           section="Likelihood and rates", range="count", higher_is_better=None, doc="Number of trained parameters."),
    _factor("information/rung_l/FACTOR", function=RUNG_INFORMATION, range="0..1",
            doc="I(z_l; v_k) / H(v_k) of the whole rung, by held-out prediction from the exact posteriors."),
    _probe("probe/rung_l/FACTOR", field="single", range="about 0..1",
           doc="Chance-corrected accuracy of a probe (discriminants or a forest) on samples of the rung. It "
           "cross-checks `information`."),
    _probe("probe/all/FACTOR", field="all", range="about 0..1", higher_is_better=True,
           doc="The same probe on samples of all rungs."),
    _probe("probe_drop/rung_l/FACTOR", field="probe_drop", range="about 0..1",
           doc="Accuracy of the probe on all rungs minus that of a probe without this rung. Noise of a few "
           "hundredths."),
    _factor("complexity/FACTOR", function=FACTOR_COMPLEXITY, range="0..1",
            doc="1 - R² of a linear probe from the pixels to the factor's easiest contrast."),
    _factor("centroid/FACTOR", function="vlae.metrics.hierarchy:factor_centroids", inputs=("information",),
            range="0..1", in_results=True,
            doc="Level centroid: mean level of the factor's information, 0 for the bottom rung and 1 for the top "
            "rung."),
    _rung("rung_compactness", function="vlae.metrics.hierarchy:rung_compactness", range="0..1",
          headline="is each factor held by one rung", searchable=True, in_results=True,
          doc="Is each factor held by one rung? InfoC of whole rungs. Not logged with fewer than two active rungs."),
    _rung("rung_modularity", function="vlae.metrics.hierarchy:rung_modularity", range="0..1",
          headline="does each rung hold one factor", searchable=True, in_results=True,
          doc="Does each rung hold one factor? InfoM of whole rungs. Not logged with fewer than two known factors."),
    _rung("centroid_complexity_spearman", function="vlae.metrics.hierarchy:centroid_complexity_spearman",
          inputs=("centroids", "complexity"), range="-1..1", headline="do complex factors lie in higher rungs",
          in_results=True, doc="Spearman correlation of `centroid` and `complexity` over the factors."),
    _probe("upper_rung_gain", field="upper_rung_gain", section="Hierarchy", range="about 0..1",
           headline="factor information lost when only the bottom rung is kept",
           doc="Fraction of the accuracy of the probe on all rungs that is lost when only the bottom rung is kept. "
           "Not logged where that probe is near chance."),
    _effect("effect/rung_l", field="pixels", range="0..1, sum >= 1",
            doc="Sobol total effect of resampling the rung on the pixels."),
    _effect("color_effect/rung_l", field="color", range="0..1, sum >= 1",
            doc="Total effect on the mean color of the image."),
    _effect("class_effect/rung_l", field="classifier", min_factors=1, range="0..1, sum >= 1",
            doc="Total effect on the class probabilities of a classifier."),
    _effect("mean_color_share/rung_l", field="mean_color_share", range="0..1", in_results=True,
            doc="Fraction of the rung's effect on the image that is a shift of the mean color."),
    _effect("mean_color_gap", field="mean_color_gap", group="search", range="-1..1", higher_is_better=True,
            searchable=True,
            doc="`mean_color_share` of the bottom rung minus that of the top rung. An objective of a search; the "
            "evaluation does not log it."),
    _effect("class_flip_rate/rung_l", field="flip_rate", min_factors=1, range="0..1", in_results=True,
            doc="How often resampling the rung changes the likeliest class."),
    Metric("classifier_accuracy", function=CLASSIFIER_ACCURACY, group="model", section="Color and class",
           min_factors=1, min_images=0, range="0..1", higher_is_better=None, in_results=True,
           doc="Test accuracy of the classifier behind `class_effect` and `class_flip_rate`."),
    _gibbs("gibbs_distance/ancestral", field="ancestral", range=">= 0", in_results=True,
           doc="Frechet distance from samples of the prior to test images."),
    _gibbs("gibbs_distance/step_n", field="distances", range=">= 0", in_results=True,
           doc="Frechet distance to test images of chains z_0 ~ q(z_0|x), x = decoder(z_0) after n steps "
           "(`evaluate.gibbs_steps`). Step 0 is other test images."),
    Metric("top_k_mse/k", function=TOP_K_CURVE, group="model", min_images=0,
           section="Gibbs chains and top rungs", range=">= 0", higher_is_better=False,
           doc="Squared error per pixel with the top k rungs inferred from the image and the others drawn from the "
           "prior."),
    _pair("mig", function="vlae.metrics.information:mig_score", per_rung=True, range="0..1",
          headline="mutual information gap", searchable=True, in_results=True,
          doc="Mutual information gap: gap between the two latents with the most information about a factor, 20 "
          "bins (Chen et al. 2018)."),
    _pair("mig/FACTOR", function="vlae.metrics.information:mig_per_factor", range="0..1", in_results=True,
          doc="The gap of one factor."),
    _pair("mig_ica", function="jobs.evaluation.code_metrics:mig_after_ica", inputs=("codes.means", "factors"),
          range="0..1", in_results=True,
          doc="MIG after the latents of each rung are rotated to be as independent as possible (FastICA, Hyvaerinen "
          "1999), because every rotation is equally good under N(0, I)."),
    _pair("mig_sup", function="vlae.metrics.information:mig_sup_score", min_factors=2, per_rung=True, range="0..1",
          headline="information gap between the two best factors of a latent", searchable=True, in_results=True,
          doc="Gap between the two factors that a latent has the most information about (Li et al. 2020)."),
    _pair("modularity", function="vlae.metrics.information:modularity_score", per_rung=True, range="0..1",
          searchable=True, doc="Does a latent have information about one factor only? (Ridgeway, Mozer 2018)"),
    _pair("dcimig", function="vlae.metrics.information:dcimig_score", per_rung=True, range="0..1",
          doc="MIG with each latent assigned to one factor (Sepliarskaia et al. 2019)."),
    _pair("jemmig", function="vlae.metrics.information:jemmig_score", per_rung=True, range="0..1",
          doc="MIG that also requires the latent to have no other information (Do, Tran 2020), normalized, higher "
          "is better."),
    _dci("dci_disentanglement", field="disentanglement", range="0..1", headline="does each latent serve one factor",
         in_results=True,
         doc="Does a latent serve one factor? Importances of boosted trees (Eastwood, Williams 2018)."),
    _dci("dci_completeness", field="completeness", range="0..1", headline="is each factor served by one latent",
         in_results=True, doc="Is a factor served by one latent?"),
    _dci("dci_informativeness", field="informativeness", range="0..1", in_results=True,
         doc="Test accuracy of the trees."),
    _dci("dci_disentanglement/rungs", field="rung_disentanglement", range="0..1",
         doc="Does a rung serve one factor? The importances of a rung's latents are added."),
    _dci("dci_completeness/rungs", field="rung_completeness", range="0..1", doc="Is a factor served by one rung?"),
    _info_mec("infom", field="infom", range="0..1", headline="modularity of the active latents", in_results=True,
              doc="InfoMEC: modularity of the active latents by nearest neighbors (Hsu et al. 2023)."),
    _info_mec("infoc", field="infoc", range="0..1", headline="compactness of the active latents", in_results=True,
              doc="InfoMEC: compactness of the active latents."),
    _info_mec("infoe", field="infoe", range="up to 1", in_results=True,
              doc="InfoMEC: fraction of the cross-entropy that a linear classifier explains."),
    _intervention("factor_vae", function="vlae.metrics.factor_vae:factor_vae_score", keywords=("seed", "active"),
                  range="1/K..1", headline="FactorVAE score", in_results=True,
                  doc="Which latent varies least where a factor is fixed (Kim, Mnih 2018). Votes are drawn from the "
                  "encoded images."),
    _classifier("sap", function="vlae.metrics.sap:sap_score", range="0..0.5",
                headline="separated attribute predictability",
                doc="Gap between the two latents that a linear SVM predicts a factor from best (Kumar et al. 2018)."),
    _classifier("explicitness", function="vlae.metrics.explicitness:explicitness_score", range="0.5..1",
                doc="Mean one-vs-rest ROC AUC of logistic regression (Ridgeway, Mozer 2018)."),
    _intervention("beta_vae", function="vlae.metrics.beta_vae:beta_vae_score", keywords=("seed",), range="1/K..1",
                  doc="Accuracy of a linear classifier of the fixed factor from differences of codes (Higgins et "
                  "al. 2017)."),
    _intervention("irs", function="vlae.metrics.irs:irs_score", range="up to 1",
                  doc="How little other factors move a latent (Suter et al. 2019)."),
    _classifier("few_labels/n", function="jobs.evaluation.code_metrics:few_label_accuracies",
                inputs=("train_means", "train_labels", "test_means", "test_labels"), keywords=("seed",),
                range="chance..1",
                doc="Test accuracy on `evaluate.label_factor` of logistic regression on n = 10, 100 or 1000 labeled "
                "codes, mean of ten draws."),
    Metric("udr", function="jobs.evaluation.code_metrics:udr_with_siblings", inputs=("means", "sibling_means"),
           group="probes", section="Without factors", range="0..1",
           doc="Do models of other seeds have the same latents? (Duan et al. 2020) Needs trainings in the workspace "
           "that differ in the seed only, and compares with those that exist. `force=evaluate` updates earlier runs."),
    _unsupervised("total_correlation", function="vlae.metrics.unsupervised:gaussian_total_correlation",
                  range="nats, >= 0",
                  doc="Total correlation of a Gaussian fitted to the means: 0 for independent latents. Not logged "
                  "for duplicated latents, for which it is infinite."),
    _unsupervised("wasserstein_correlation", function="vlae.metrics.unsupervised:gaussian_wasserstein_correlation",
                  options={"normalize": True}, range="0..2",
                  doc="Squared Wasserstein distance from a Gaussian fitted to the means to the product of its "
                  "marginals, divided by the sum of the variances. Finite for duplicated latents."),
    _unsupervised("pairwise_information", function="vlae.metrics.unsupervised:mean_pairwise_mutual_information",
                  range="nats, 0..3.0", doc="Mean mutual information of two latents, 20 bins."),
)
# fmt: on

HEADLINE_METRICS = tuple(metric for metric in METRICS if metric.headline)
SEARCHABLE_METRICS = tuple(metric.name for metric in METRICS if metric.searchable)
CHAMPION_METRICS = tuple(metric.name for metric in HEADLINE_METRICS if metric.searchable)

if TYPE_CHECKING:
    ObjectiveMetric = str
    ChampionMetric = str
else:  # a type checker cannot evaluate these, pydantic and --help can
    ObjectiveMetric = Literal[SEARCHABLE_METRICS]
    ChampionMetric = Literal[CHAMPION_METRICS]


def headline(values: Mapping[str, float]) -> dict[str, float]:
    """Return the headline metrics among these, in the order of the registry."""
    return {metric.name: values[metric.name] for metric in HEADLINE_METRICS if metric.name in values}


def defined_metrics(group: Group, num_images: int) -> list[Metric]:
    """Return the metrics of a group that need at most `num_images` images in the smaller split."""
    return [metric for metric in METRICS if metric.group == group and metric.min_images <= num_images]


def undefined_notes(num_images: int) -> list[str]:
    """Return the metrics left out for lack of images in the smaller split, a sentence per minimum number of images."""
    notes = []
    for needed in sorted({metric.min_images for metric in METRICS if metric.min_images > num_images}):
        names: list[str] = []
        for section in SECTIONS:
            metrics = [metric for metric in METRICS if metric.section == section and metric.group != "search"]
            missing = [metric.name.partition("/")[0] for metric in metrics if metric.min_images == needed]
            names += [f"all of '{section}'"] if len(missing) == len(metrics) else dict.fromkeys(missing)
        notes.append(
            f"metrics left out, because they need {needed} images in the train and in the test split, and the smaller "
            f"one has {num_images}: {', '.join(names)}"
        )
    return notes


def required_images(names: Iterable[str]) -> int:
    """Return the largest `min_images` of metrics without placeholders, 0 for unknown names."""
    chosen = set(names)
    return max((metric.min_images for metric in METRICS if metric.name in chosen), default=0)


def required_factors(names: Iterable[str]) -> int:
    """Return the largest `min_factors` of metrics without placeholders, 0 for unknown names."""
    chosen = set(names)
    return max((metric.min_factors for metric in METRICS if metric.name in chosen), default=0)


def metrics_markdown() -> str:
    """Return the reference of docs/metrics.md, one Markdown table per section under a heading of level 3."""
    better = {True: "higher", False: "lower", None: "-"}
    lines: list[str] = []
    for section, meaning in SECTIONS.items():
        lines += [
            f"### {section}",
            "",
            meaning,
            "",
            "| name | range | better | factors | definition |",
            "|" + "---|" * 5,
        ]
        for metric in METRICS:
            if metric.section != section:
                continue
            names = f"`{metric.name}`" + (f", `{metric.name}/rung_l`" if metric.per_rung else "")
            definition = metric.doc.replace("|", "\\|")
            if metric.searchable:
                definition += " Can be an objective" + (" and the champion metric." if metric.headline else ".")
            cells = (names, metric.range, better[metric.higher_is_better], str(metric.min_factors), definition)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(metrics_markdown(), end="")
