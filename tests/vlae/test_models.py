"""Properties that hold for every model, whatever its depth, size and channels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from vlae.build import build_model
from vlae.config import HvaeConfig, ObjectiveConfig, VlaeConfig
from vlae.models.base import HierarchicalModel
from vlae.objective import kl_weight, objective_loss

CONFIGS = {"vlae": VlaeConfig, "hvae": HvaeConfig}


def small(name: str, dims: tuple[int, ...] = (2, 3, 4), shape: tuple[int, int, int] = (3, 32, 32)) -> HierarchicalModel:
    return build_model(CONFIGS[name](latent_dims=dims, width=4, hidden=16), shape, seed=1)


def batch(model: HierarchicalModel, count: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *model.image_shape, generator=generator), model.noise(count, generator)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    dims=st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple),
    size=st.sampled_from([28, 32, 64]),
    channels=st.sampled_from([1, 3]),
)
def test_shapes(name: str, dims: tuple[int, ...], size: int, channels: int) -> None:
    model = small(name, dims, (channels, size, size))
    images, noise = batch(model)
    with torch.no_grad():
        drawn = model.infer(images, noise)
        terms = model(images, noise)
        made = model.mean_image(model.prior(noise))
    for parts in (drawn.latents, drawn.kl_dims, [q.mean for q in drawn.posteriors], model.means(images)):
        assert [tuple(part.shape) for part in parts] == [(3, dim) for dim in dims]
    assert terms.reconstruction.shape == (3,)
    assert terms.kl.shape == (3, len(dims))
    assert made.shape == images.shape
    assert made.min() >= 0
    assert made.max() <= 1
    torch.testing.assert_close(terms.kl, drawn.kl)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    config = CONFIGS[name](latent_dims=(2, 2), width=4, hidden=8)
    before = torch.get_rng_state()
    first = build_model(config, (1, 28, 28), seed=5).state_dict()
    torch.randn(10)
    again, other = (build_model(config, (1, 28, 28), seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.set_rng_state(before)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = small(name)
    with torch.no_grad():  # a learned prior that starts at zero passes no gradient to the layers before it
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    objective_loss(model(*batch(model)), 1.0).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_vlae_kl_is_exact() -> None:
    model = small("vlae")
    images, noise = batch(model)
    drawn = model.infer(images, noise)
    for rung, q in enumerate(drawn.posteriors):
        expected = torch.distributions.kl_divergence(Normal(q.mean, q.log_sigma.exp()), Normal(0.0, 1.0)).sum(1)
        torch.testing.assert_close(drawn.kl[:, rung], expected)


def test_vlae_rungs_are_inferred_independently_and_used_by_the_decoder() -> None:
    model = small("vlae")
    images, noise = batch(model)
    with torch.no_grad():
        base = model.mean_image(noise)
        for rung in range(3):
            moved = [part + 1.0 * (index == rung) for index, part in enumerate(noise)]
            latents = model.infer(images, moved).latents
            same = [torch.equal(a, b) for a, b in zip(latents, model.infer(images, noise).latents, strict=True)]
            assert same == [index != rung for index in range(3)]
            assert (model.mean_image(moved) - base).abs().max() > 1e-6


def test_hvae_image_depends_on_the_bottom_rung_alone() -> None:
    model = small("hvae")
    _, noise = batch(model)
    other = [noise[0], noise[1] + 1, noise[2] - 1]
    assert torch.equal(model.decode(noise), model.decode(other))
    assert not torch.equal(model.decode(noise), model.decode([noise[0] + 1, *noise[1:]]))


def test_hvae_kl_is_the_log_ratio_of_posterior_and_prior() -> None:
    """Mean over samples of the summed terms = E_q[log q(z|x) - log p(z)], by torch.distributions."""
    model = small("hvae", (2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).expand(20_000, -1, -1, -1)
        q0 = model.infer(image[:1], [torch.zeros(1, 2)] * 2).posteriors[0]
        noise = model.noise(20_000, torch.Generator().manual_seed(1))
        z0 = q0.mean + q0.log_sigma.exp() * noise[0]
        raw1 = model.ascend[0](z0)
        q1 = Normal(raw1[:, :2], (5 * torch.tanh(raw1[:, 2:] / 5)).exp())
        z1 = q1.mean + q1.stddev * noise[1]
        rawp = model.descend[0](z1)
        p0 = Normal(rawp[:, :2], (5 * torch.tanh(rawp[:, 2:] / 5)).exp())
        log_q = Normal(q0.mean, q0.log_sigma.exp()).log_prob(z0).sum(1) + q1.log_prob(z1).sum(1)
        log_p = p0.log_prob(z0).sum(1) + Normal(0.0, 1.0).log_prob(z1).sum(1)
        kl = torch.cat(
            [model.infer(image[s : s + 500], [n[s : s + 500] for n in noise]).kl for s in range(0, 20_000, 500)]
        )
    expected = (log_q - log_p).mean()
    assert kl.sum(1).mean().item() == pytest.approx(expected.item(), rel=0.02)


def test_objective() -> None:
    model = small("vlae")
    terms = model(*batch(model))
    by_hand = (terms.reconstruction + 0.5 * (terms.kl[:, 0] + terms.kl[:, 1] + terms.kl[:, 2])).mean()
    torch.testing.assert_close(objective_loss(terms, 0.5), by_hand)
    config = ObjectiveConfig(beta=4, warmup_steps=10)
    assert [kl_weight(config, step) for step in (0, 5, 10, 99)] == [0, 2, 4, 4]
    assert kl_weight(ObjectiveConfig(beta=2, warmup_steps=0), 0) == 2


def test_an_image_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="31x31"):
        small("vlae", (2,), (3, 31, 31))
