"""Properties that hold for every model, whatever its depth, size and channels."""

import pytest
import torch
from helpers.small_models import CONFIGS, STACKS, batch, small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from vlae.config import ObjectiveConfig
from vlae.models.base import HierarchicalModel
from vlae.models.factory import build_model
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
def test_shapes(name: str, network: str, dims: tuple[int, ...], size: int, channels: int, norm: str) -> None:
    model = small(name, dims, (channels, size, size), network=network, norm=norm)
    images, noise = batch(model)
    with torch.no_grad():
        drawn = model.infer(images, noise)
        terms = model(images, noise)
        made = model.mean_image(model.prior(noise))
    for parts in (drawn.latents, drawn.kl_dims, [q.mean for q in drawn.posteriors], model.means(images)):
        assert [tuple(part.shape) for part in parts] == [(3, dim) for dim in model.latent_dims]
    assert terms.reconstruction.shape == (3,)
    assert terms.kl.shape == (3, len(model.latent_dims))
    assert made.shape == images.shape
    assert made.min() >= 0
    assert made.max() <= 1
    torch.testing.assert_close(terms.kl, drawn.kl)


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
def test_shapes_of_published_networks(name: str, network: str, rungs: int, shape: tuple[int, int, int]) -> None:
    model = small(name, (2, 3, 4, 5)[:rungs], shape, network=network, norm="batch")
    images, noise = batch(model)
    assert model.mean_image(model.infer(images, noise).latents).shape == images.shape


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    config = CONFIGS[name](latent_dims=(2,), width=4, hidden_dims=8)
    before = torch.get_rng_state()
    first = build_model(config, (1, 28, 28), seed=5).state_dict()
    torch.randn(10)
    again, other = (build_model(config, (1, 28, 28), seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.set_rng_state(before)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("more", [{}, {"norm": "batch"}, {"network": "medium", "latent_dims": (2, 3, 4, 5)}])
def test_every_parameter_gets_a_gradient(name: str, more: dict[str, object]) -> None:
    dims = more.get("latent_dims", (2, 3, 4))
    heads = {"batch_norm_heads": True} if name in STACKS and "norm" in more else {}
    model = small(name, **{**more, **heads, "latent_dims": dims[:1] if name == "vae" else dims})
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # a learned prior that starts at zero passes no gradient to the layers before it
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    loss_of(model).backward()
    untouched = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("sigma", ["exp", "sigmoid", "softplus"])
def test_gradients(name: str, sigma: str) -> None:
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
def test_kl_is_exact_where_it_can_be(name: str) -> None:
    model = small(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    drawn = model.infer(*batch(model))
    for rung, (q, p) in enumerate(zip(drawn.posteriors, drawn.priors, strict=True)):
        free = name == "vlae" or rung == len(drawn.priors) - 1
        against = Normal(torch.zeros_like(q.mean), 1.0) if free else Normal(p.mean, p.log_sigma.exp())
        expected = kl_divergence(Normal(q.mean, q.log_sigma.exp()), against).sum(1)
        torch.testing.assert_close(drawn.kl[:, rung], expected)
    value = drawn.latents[-1]
    torch.testing.assert_close(drawn.priors[-1].log_prob(value), Normal(0.0, 1.0).log_prob(value))


@pytest.mark.parametrize("name", ["hvae", "lvae"])
def test_the_prior_of_a_stack_is_that_of_the_sample_above(name: str) -> None:
    """Also: the log ratio at the sample, summed over the rungs, is what the KLs average to."""
    model = small(name)
    images, noise = batch(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        drawn = model.infer(images, noise)
        for rung in range(2):
            p = model.top_down[rung](drawn.latents[rung + 1])
            torch.testing.assert_close(p.mean, drawn.priors[rung].mean)
        zeros = [torch.zeros_like(part) for part in noise]
        drawn_from_prior = model.prior(zeros, [None, None, drawn.latents[2]])
        torch.testing.assert_close(drawn_from_prior[1], drawn.priors[1].mean)
        many = images[:1].expand(4000, -1, -1, -1)
        sampled = model.infer(many, model.noise(4000, torch.Generator().manual_seed(1)))
    spread = sampled.log_ratio.std().item() / 4000**0.5
    assert abs((sampled.log_ratio - sampled.kl.sum(1)).mean().item()) < 4 * spread


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_given_rungs_stay_and_those_below_follow(name: str) -> None:
    model = small(name)
    _, noise = batch(model)
    rungs = len(noise)
    fixed = [part + 5 for part in noise]
    assert all(map(torch.equal, model.prior(noise, fixed), fixed))
    assert all(map(torch.equal, model.prior(noise, [None] * rungs), model.prior(noise)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        top = model.prior(noise, [*[None] * (rungs - 1), fixed[-1]])
        changed = [not torch.equal(a, b) for a, b in zip(top, model.prior(noise), strict=True)]
    assert changed == ([False, False, True] if name in ("vlae", "axes") else [True] * rungs)


@pytest.mark.parametrize("name", STACKS)
def test_a_stacks_image_depends_on_the_bottom_rung_alone(name: str) -> None:
    model = small(name)
    _, noise = batch(model)
    other = [noise[0], *(part + 1 for part in noise[1:])]
    assert torch.equal(model.decode(noise), model.decode(other))
    assert not torch.equal(model.decode(noise), model.decode([noise[0] + 1, *noise[1:]]))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_learned_priors_start_as_standard_normal(norm: str) -> None:
    for sigma, tolerance in (("exp", 1e-6), ("softplus", 1e-5), ("sigmoid", 2e-3)):
        model = small("hvae", posterior_scale_link=sigma, norm=norm, batch_norm_heads=norm == "batch")
        drawn = model.infer(*batch(model))
        for prior in drawn.priors:
            assert prior.mean.abs().max() < 1e-6
            assert prior.log_sigma.abs().max() < tolerance


def test_a_mean_of_the_lvae_is_a_mean_of_evidence_and_prior() -> None:
    model = small("lvae")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        images, noise = batch(model)
        drawn = model.infer(images, noise)
        evidence = model.heads[0](model.encoder(images))
    low, high = torch.minimum(evidence.mean, drawn.priors[0].mean), torch.maximum(evidence.mean, drawn.priors[0].mean)
    assert ((drawn.posteriors[0].mean >= low - 1e-6) & (drawn.posteriors[0].mean <= high + 1e-6)).all()
    narrower = torch.minimum(evidence.log_sigma, drawn.priors[0].log_sigma)
    assert (drawn.posteriors[0].log_sigma < narrower).all()
