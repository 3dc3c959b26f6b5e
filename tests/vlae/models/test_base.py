"""Properties of every model, whatever its depth, size and channels."""

import pytest
import torch
from helpers.small_models import CONFIGS, STACKS, batch, perturb, small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from vlae.config import ObjectiveConfig
from vlae.models.base import HierarchicalModel
from vlae.objective import objective_loss

PLAIN = ObjectiveConfig()


def loss_of(model: HierarchicalModel) -> torch.Tensor:
    return objective_loss(model(*batch(model)), [1.0] * len(model.latent_dims), PLAIN)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    network=st.sampled_from(["pyramid", "mlp"]),
    dims=st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple),
    size=st.sampled_from([28, 32, 64]),
    channels=st.sampled_from([1, 3]),
    norm=st.sampled_from(["group", "batch", "none"]),
)
def test_model_shapes_are_documented(
    name: str, network: str, dims: tuple[int, ...], size: int, channels: int, norm: str
) -> None:
    model = small(name, dims, (channels, size, size), network=network, norm=norm)
    images, noise = batch(model)
    with torch.no_grad():
        inference = model.infer(images, noise)
        terms = model(images, noise)
        sampled = model.mean_image(model.prior(noise))
    means = [q.mean for q in inference.posteriors]
    for rungs in (inference.latents, inference.kl_dims, means, model.means(images)):
        assert [tuple(values.shape) for values in rungs] == [(3, dim) for dim in model.latent_dims]
    assert terms.reconstruction.shape == (3,)
    assert terms.kl.shape == (3, len(model.latent_dims))
    assert sampled.shape == images.shape
    assert sampled.min() >= 0
    assert sampled.max() <= 1
    torch.testing.assert_close(terms.kl, inference.kl)


@pytest.mark.parametrize("name", ["vlae", *STACKS])
@pytest.mark.parametrize(
    ("network", "rungs", "shape"),
    [
        ("small", 3, (1, 28, 28)),
        ("medium", 4, (3, 32, 32)),
        ("large", 4, (3, 64, 64)),
        ("provlae", 3, (1, 64, 64)),
        ("provlae", 4, (3, 64, 64)),
    ],
)
def test_published_networks_reconstruct_the_image_shape(
    name: str, network: str, rungs: int, shape: tuple[int, int, int]
) -> None:
    model = small(name, (2, 3, 4, 5)[:rungs], shape, network=network, norm="batch")
    images, noise = batch(model)
    assert model.mean_image(model.infer(images, noise).latents).shape == images.shape


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("more", [{}, {"norm": "batch"}, {"network": "medium", "latent_dims": (2, 3, 4, 5)}])
def test_loss_has_a_gradient_for_every_parameter(name: str, more: dict[str, object]) -> None:
    dims = more.get("latent_dims", (2, 3, 4))
    heads = {"batch_norm_heads": True} if name in STACKS and "norm" in more else {}
    model = small(name, **{**more, **heads, "latent_dims": dims[:1] if name == "vae" else dims})
    loss_of(perturb(model, 0.01)).backward()
    untouched = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("sigma", ["exp", "sigmoid", "softplus"])
def test_loss_gradients_agree_with_differences(name: str, sigma: str) -> None:
    """Autograd against finite differences, through encoder, samples, KL, decoder and likelihood."""
    settings = {"network": "mlp", "hidden_dims": 3, "likelihood": "gaussian", "posterior_scale_link": sigma}
    model = small(name, (2, 1), (1, 3, 3), **settings).double()
    images, noise = (
        value.double() if torch.is_tensor(value) else [v.double() for v in value] for value in batch(model)
    )
    names = [key for key, _ in model.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        terms = functional_call(model, dict(zip(names, parameters, strict=True)), (images, noise))
        return objective_loss(terms, [0.7] * len(model.latent_dims), PLAIN)

    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


@pytest.mark.parametrize("name", ["vlae", "lvae", "vae"])
def test_kl_agrees_with_torch_distributions(name: str) -> None:
    model = perturb(small(name), 0.05)
    inference = model.infer(*batch(model))
    for rung, (q, p) in enumerate(zip(inference.posteriors, inference.priors, strict=True)):
        free = name == "vlae" or rung == len(inference.priors) - 1
        against = Normal(torch.zeros_like(q.mean), 1.0) if free else Normal(p.mean, p.log_sigma.exp())
        expected = kl_divergence(Normal(q.mean, q.log_sigma.exp()), against).sum(1)
        torch.testing.assert_close(inference.kl[:, rung], expected)
    value = inference.latents[-1]
    torch.testing.assert_close(inference.priors[-1].log_prob(value), Normal(0.0, 1.0).log_prob(value))


@pytest.mark.parametrize("name", ["hvae", "lvae"])
def test_priors_of_a_stack_depend_on_the_sample_above(name: str) -> None:
    """The mean over samples of the log ratio is the mean KL."""
    model = perturb(small(name), 0.05)
    images, noise = batch(model)
    with torch.no_grad():
        inference = model.infer(images, noise)
        for rung in range(2):
            p = model.top_down[rung](inference.latents[rung + 1])
            torch.testing.assert_close(p.mean, inference.priors[rung].mean)
        zeros = [torch.zeros_like(values) for values in noise]
        sampled_from_prior = model.prior(zeros, [None, None, inference.latents[2]])
        torch.testing.assert_close(sampled_from_prior[1], inference.priors[1].mean)
        many = images[:1].expand(4000, -1, -1, -1)
        sampled = model.infer(many, model.noise(4000, torch.Generator().manual_seed(1)))
    spread = sampled.log_ratio.std().item() / 4000**0.5
    assert abs((sampled.log_ratio - sampled.kl.sum(1)).mean().item()) < 4 * spread


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_prior_keeps_fixed_rungs_and_samples_those_below(name: str) -> None:
    model = perturb(small(name), 0.05)
    _, noise = batch(model)
    rungs = len(noise)
    fixed = [values + 5 for values in noise]
    assert all(map(torch.equal, model.prior(noise, fixed), fixed))
    assert all(map(torch.equal, model.prior(noise, [None] * rungs), model.prior(noise)))
    with torch.no_grad():
        top = model.prior(noise, [*[None] * (rungs - 1), fixed[-1]])
        changed = [not torch.equal(a, b) for a, b in zip(top, model.prior(noise), strict=True)]
    assert changed == ([False, False, True] if name in ("vlae", "axes") else [True] * rungs)


@pytest.mark.parametrize("name", STACKS)
def test_decode_of_a_stack_depends_on_rung_0_alone(name: str) -> None:
    model = small(name)
    _, noise = batch(model)
    other = [noise[0], *(values + 1 for values in noise[1:])]
    assert torch.equal(model.decode(noise), model.decode(other))
    assert not torch.equal(model.decode(noise), model.decode([noise[0] + 1, *noise[1:]]))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_learned_priors_start_at_the_standard_normal(norm: str) -> None:
    for sigma, tolerance in (("exp", 1e-6), ("softplus", 1e-5), ("sigmoid", 2e-3)):
        model = small("hvae", posterior_scale_link=sigma, norm=norm, batch_norm_heads=norm == "batch")
        inference = model.infer(*batch(model))
        for prior in inference.priors:
            assert prior.mean.abs().max() < 1e-6
            assert prior.log_sigma.abs().max() < tolerance


def test_lvae_posterior_lies_between_evidence_and_prior() -> None:
    model = perturb(small("lvae"), 0.05)
    with torch.no_grad():
        images, noise = batch(model)
        inference = model.infer(images, noise)
        evidence = model.heads[0](model.encoder(images))
    low, high = (
        torch.minimum(evidence.mean, inference.priors[0].mean),
        torch.maximum(evidence.mean, inference.priors[0].mean),
    )
    assert ((inference.posteriors[0].mean >= low - 1e-6) & (inference.posteriors[0].mean <= high + 1e-6)).all()
    narrower = torch.minimum(evidence.log_sigma, inference.priors[0].log_sigma)
    assert (inference.posteriors[0].log_sigma < narrower).all()
