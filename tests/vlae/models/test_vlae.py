"""The ladder: independent rungs, rotations and gates."""

import pytest
import torch
from helpers.small_models import batch, perturb, small

from vlae.models.heads import posterior_head
from vlae.models.rotation import rotation_matrix


def test_vlae_under_autocast_has_float32_latents_and_kl() -> None:
    model = perturb(small("axes"), 0.5)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            inference = model.infer(*batch(model))
            decoded = model.decode(inference.latents)
        unrotated = model.rung_rotations.inverse(inference.latents)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(decoded, model.decoder(unrotated[-1], unrotated[:-1], None))
    for values in (*inference.latents, *inference.kl_dims, *(q.mean for q in inference.posteriors)):
        assert values.dtype == torch.float32


def test_rotations_change_latents_and_not_the_mean_image() -> None:
    """Without posterior noise the image does not depend on the rotation."""
    model = small("axes")
    images, noise = batch(model)
    zeros = [torch.zeros_like(values) for values in noise]
    with torch.no_grad():
        before = model.infer(images, zeros)
        decoded = model.decode(before.latents)
        for skew in model.rung_rotations.skews:
            skew += torch.randn(skew.shape, generator=torch.Generator().manual_seed(2))
        after = model.infer(images, zeros)
        for old, new, skew in zip(before.latents, after.latents, model.rung_rotations.skews, strict=True):
            rotation = rotation_matrix(skew)
            torch.testing.assert_close(rotation @ rotation.T, torch.eye(len(rotation)))
            assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)
            torch.testing.assert_close(new, old @ rotation.T)
            assert (new - old).abs().max() > 0.1
        torch.testing.assert_close(model.decode(after.latents), decoded, atol=1e-5, rtol=1e-4)


def test_vlae_rungs_are_independent_and_all_decoded() -> None:
    model = small("vlae")
    images, noise = batch(model)
    with torch.no_grad():
        base = model.mean_image(noise)
        for rung in range(3):
            changed = [values + 1.0 * (index == rung) for index, values in enumerate(noise)]
            latents = model.infer(images, changed).latents
            same = [torch.equal(a, b) for a, b in zip(latents, model.infer(images, noise).latents, strict=True)]
            assert same == [index != rung for index in range(3)]
            assert (model.mean_image(changed) - base).abs().max() > 1e-6


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_set_gates_zero_disconnects_a_rung(rung: int) -> None:
    model = small("vlae")
    images, noise = batch(model)
    others = [float(index != rung) for index in range(3)]
    with torch.no_grad():
        whole = model.decode(noise)
        model.set_gates(others, others)
        without = model.decode(noise)
        changed = [values + 3.0 * (index == rung) for index, values in enumerate(noise)]
        assert torch.equal(without, model.decode(changed))
        assert not torch.equal(without, whole)
        mean = model.infer(images, noise).posteriors[rung].mean
        torch.testing.assert_close(mean, mean[:1].expand_as(mean))
        assert "gates" not in model.state_dict()
        model.set_gates([1, 1, 1], [1, 1, 1])
        assert torch.equal(model.decode(noise), whole)


def test_set_gates_inputs_and_outputs_are_separate() -> None:
    """A closed output leaves the rung's posterior as it is, and a closed input the decoder."""
    model = small("vlae")
    images, noise = batch(model)
    with torch.no_grad():
        means, decoded = model.means(images), model.decode(noise)
        model.set_gates([1, 1, 1], [0, 1, 1])
        assert all(map(torch.equal, model.means(images), means))
        assert not torch.equal(model.decode(noise), decoded)
        model.set_gates([0, 1, 1], [1, 1, 1])
        assert [torch.equal(a, b) for a, b in zip(model.means(images), means, strict=True)] == [False, True, True]
        assert torch.equal(model.decode(noise), decoded)


@pytest.mark.parametrize("features", [16, 1024])
def test_posterior_head_starts_informative(features: int) -> None:
    """Whatever the number of features, means vary by about 1 over the data, and sigma is about exp(-1)."""
    torch.manual_seed(0)
    posterior = posterior_head(features, 50, "exp")(torch.randn(200, features))
    assert posterior.mean.std().item() == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(posterior.log_sigma, torch.full((200, 50), -1.0), atol=0.05, rtol=0)
