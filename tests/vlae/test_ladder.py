"""What is the ladder's alone: rungs that are independent, that are turned, that are faded in."""

import pytest
import torch
from helpers.small_models import batch, small

from vlae.models.rotation import rotation


def test_latents_and_their_kl_stay_float32_in_bf16() -> None:
    model = small("axes")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        drawn = model.infer(*batch(model))
        back = model.rotations.inverse(drawn.latents)
        model.decode(drawn.latents)
    for part in (*drawn.latents, *drawn.kl_dims, *(q.mean for q in drawn.posteriors)):
        assert part.dtype == torch.float32
    assert back[0].dtype == torch.bfloat16  # which is why the model turns its latents outside autocast


def test_rungs_are_turned_for_the_prior_and_back_for_the_decoder() -> None:
    """So a turn changes what the latents are, and of the image only what the noise of the posterior lays into it."""
    model = small("axes")
    images, noise = batch(model)
    still = [torch.zeros_like(part) for part in noise]
    with torch.no_grad():
        before = model.infer(images, still)
        shown = model.decode(before.latents)
        for skew in model.rotations.skews:
            skew += torch.randn(skew.shape, generator=torch.Generator().manual_seed(2))
        after = model.infer(images, still)
        for old, new, skew in zip(before.latents, after.latents, model.rotations.skews, strict=True):
            turn = rotation(skew)
            torch.testing.assert_close(turn @ turn.T, torch.eye(len(turn)))
            assert torch.linalg.det(turn).item() == pytest.approx(1, abs=1e-5)
            torch.testing.assert_close(new, old @ turn.T)
            assert (new - old).abs().max() > 0.1
        torch.testing.assert_close(model.decode(after.latents), shown, atol=1e-5, rtol=1e-4)


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


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_a_faded_rung_reads_and_writes_nothing(rung: int) -> None:
    model = small("vlae")
    images, noise = batch(model)
    others = [float(index != rung) for index in range(3)]
    with torch.no_grad():
        whole = model.decode(noise)
        model.set_gates(others, others)
        without = model.decode(noise)
        moved = [part + 3.0 * (index == rung) for index, part in enumerate(noise)]
        assert torch.equal(without, model.decode(moved))
        assert not torch.equal(without, whole)
        mean = model.infer(images, noise).posteriors[rung].mean
        torch.testing.assert_close(mean, mean[:1].expand_as(mean))  # the image does not reach it
        assert "fade" not in model.state_dict()
        model.set_gates([1, 1, 1], [1, 1, 1])
        assert torch.equal(model.decode(noise), whole)
