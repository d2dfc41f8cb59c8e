"""The finite guard on a real AutoencoderKL and UNet: the fault first, then the cure, then that nothing is left."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from one_model import Guarded, OneModel, needs_half_kernels
from safetensors.torch import save_file
from torch import nn

from lib_guard.guards import FiniteGuard
from lib_guard.hosts.base import Boundary
from lib_guard.hosts.diffusers import vae_boundaries
from lib_guard.settings import Settings
from lib_guard.tensors import random_state

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture
def overflowing(make_vae) -> nn.Module:
    """A half VAE whose activations grow past 65504 in both directions; in float32 the norms behind bring them back."""
    vae = make_vae().half()
    with torch.no_grad():
        for block in (vae.decoder.mid_block.resnets[0], vae.encoder.mid_block.resnets[0]):
            block.conv1.weight.mul_(6e4 / float(block.conv1.weight.abs().max()))
    return vae


def on(*boundaries: Boundary, loras=(), **kwargs) -> Guarded:
    return Guarded(OneModel(lambda: list(boundaries), lora_files=tuple(loras), now=(3, 20)), **kwargs)


@torch.no_grad()
def decode(vae: nn.Module, dtype: torch.dtype = HALF) -> torch.Tensor:
    torch.manual_seed(1)
    return vae.decode(torch.randn(1, 4, 8, 8).to(HALF).to(dtype), return_dict=False)[0]


@torch.no_grad()
def encode(vae: nn.Module, dtype: torch.dtype = HALF) -> torch.Tensor:
    torch.manual_seed(1)
    drawn = vae.encode((torch.rand(1, 3, 16, 16) * 2 - 1).to(HALF).to(dtype)).latent_dist
    return drawn.sample(torch.Generator().manual_seed(2)).to(HALF)


PASSES = {"decode": decode, "encode": encode}


@pytest.mark.parametrize("direction", PASSES)
def test_an_overflow_gives_the_float32_result_and_leaves_the_vae_as_it_was(overflowing, direction):
    call = PASSES[direction]
    assert not call(overflowing).isfinite().all()
    before = {name: tensor.clone() for name, tensor in overflowing.state_dict().items()}
    with on(*vae_boundaries(overflowing)) as guarded:
        result = call(overflowing)
    assert torch.equal(result, call(copy.deepcopy(overflowing).float(), FLOAT))
    assert result.dtype is {"decode": FLOAT, "encode": HALF}[direction]
    (finding, repair), *rest = guarded.reports
    assert not rest and (finding.code, finding.direction) == ("LG201", direction)
    assert repair.did == f"{direction}d again in float32" and repair.proof == "result finite"
    after = overflowing.state_dict()
    assert all(after[name].dtype is HALF and torch.equal(after[name], tensor) for name, tensor in before.items())


@needs_half_kernels
def test_autocast_does_not_narrow_the_second_call(overflowing):
    def under_autocast(vae: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", HALF):
            return decode(vae)

    assert not under_autocast(overflowing).isfinite().all()
    expected = decode(copy.deepcopy(overflowing).float(), FLOAT)
    with on(*vae_boundaries(overflowing)) as guarded:
        assert torch.equal(under_autocast(overflowing), expected)
    assert guarded.codes == ["LG201"]


def test_a_chosen_precision_that_overflows_gives_way_to_float32(overflowing):
    wide = copy.deepcopy(overflowing).float()
    with on(*vae_boundaries(wide), settings=Settings(vae_precision="float16")) as guarded:
        result = decode(wide)
    assert torch.equal(result, decode(wide, FLOAT)) and "LG201" in guarded.codes


def test_with_the_precision_guard_off_it_works_as_well(overflowing):
    expected = decode(copy.deepcopy(overflowing).float(), FLOAT)
    with on(*vae_boundaries(overflowing), settings=Settings(precision="off")) as guarded:
        assert torch.equal(decode(overflowing), expected)
    assert guarded.codes == ["LG201"]


def test_an_encode_that_draws_draws_the_same_when_it_is_called_again(overflowing):
    """Forge's `encode` returns latents that are drawn from the process's generator."""

    class Drawing:
        def encode(self, picture):
            noise = torch.randn(1, 4, 8, 8)
            moments = overflowing.encoder(picture)
            return moments.new_zeros(()) + moments[:, :4] * 0 + noise.to(moments)

    class DrawingVae(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = overflowing.encoder

        encode = Drawing.encode

    vae = DrawingVae()
    picture = torch.rand(1, 3, 16, 16).to(HALF)
    with torch.no_grad():
        torch.manual_seed(5)
        drawn = torch.randn(1, 4, 8, 8).to(HALF)
        assert not vae.encode(picture).isfinite().all()
        with on(*vae_boundaries(vae)):
            torch.manual_seed(5)
            assert torch.equal(vae.encode(picture), drawn)


def test_the_random_state_is_put_back():
    torch.manual_seed(1)
    put_back = random_state.remember_random_state((torch.ones(1),))
    first = torch.randn(3)
    put_back()
    assert torch.equal(torch.randn(3), first)


def test_memory_that_does_not_suffice_for_float32_leaves_bfloat16(overflowing, monkeypatch):
    forward = overflowing.decoder.conv_out.forward

    def full(given):
        if given.dtype is FLOAT:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(given)

    monkeypatch.setattr(overflowing.decoder.conv_out, "forward", full)
    with on(*vae_boundaries(overflowing)) as guarded:
        assert decode(overflowing).isfinite().all()
    assert guarded.reports[0][1].did == "decoded again in bfloat16"


def test_a_vae_with_broken_weights_is_named_and_tried_in_vain_once(make_vae):
    vae = make_vae()
    with torch.no_grad():
        vae.decoder.conv_in.bias[0] = float("nan")
    calls = []
    vae.decoder.register_forward_pre_hook(lambda *args: calls.append(1))
    with on(*vae_boundaries(vae)) as guarded:
        assert not decode(vae, FLOAT).isfinite().all()
    assert guarded.codes == ["LG203"] and "decoder.conv_in.bias is the first" in guarded.reports[0][0].saw
    assert len(calls) == 1, "in float32 nothing is left to try"


def test_warn_says_it_and_hands_out_what_came(overflowing):
    with on(*vae_boundaries(overflowing), settings=Settings(finite="warn")) as guarded:
        assert not decode(overflowing).isfinite().all()
    assert guarded.codes == ["LG201"] and guarded.reports[0][1] is None


@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT], ids=str)
@pytest.mark.parametrize("direction", PASSES)
def test_a_healthy_vae_keeps_every_bit(make_vae, dtype, direction):
    vae = make_vae().to(dtype)
    expected = PASSES[direction](vae, dtype)
    with on(*vae_boundaries(vae)) as guarded:
        result = PASSES[direction](vae, dtype)
    assert torch.equal(result, expected) and result.dtype is expected.dtype and guarded.reports == []


# A latent that is not finite.


@pytest.fixture
def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


@torch.no_grad()
def sample(unet: nn.Module, host: OneModel, steps: int, bad: int) -> torch.Tensor:
    """Steps of sampling; from step `bad` on the latent is NaN."""
    latent = torch.ones(1, 4, 8, 8)
    for step in range(1, steps + 1):
        host.now = (step, steps)
        latent = unet(latent * (float("nan") if step == bad else 1), 500.0, torch.ones(1, 5, 16)).sample
    return latent


def test_the_step_and_the_lora_file_are_named_and_nothing_is_decoded_again(make_vae, unet, tmp_path):
    weights = {"good": torch.ones(4), "lora_unet_down.weight": torch.tensor([[1.0, float("inf"), float("nan")]])}
    save_file(weights, tmp_path / "bad.safetensors")
    save_file({"good": torch.ones(4)}, tmp_path / "good.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    loras = [(name, tmp_path / f"{name}.safetensors") for name in ("good", "bad", "broken", "gone")]
    vae = make_vae()
    calls = []
    vae.decoder.register_forward_pre_hook(lambda *args: calls.append(1))
    with on(*vae_boundaries(vae), Boundary("unet", unet), loras=loras) as guarded:
        latent = sample(unet, guarded.host, steps=5, bad=3)
        with torch.no_grad():
            vae.decode(latent)
            vae.decode(latent)
    (finding, repair), *rest = guarded.reports
    assert not rest and finding.code == "LG202" and repair is None and len(calls) == 2
    assert "it began in step 3 of 5" in finding.saw and 'LoRA "bad": lora_unet_down.weight' in finding.saw
    assert finding.evidence["step"] == 3 and "good" not in finding.evidence["loras"]
    assert str(tmp_path) not in str(finding)


def test_it_is_said_as_well_when_the_host_gives_up_before_the_decode(unet):
    with on(Boundary("unet", unet)) as guarded:
        sample(unet, guarded.host, steps=2, bad=2)
        assert guarded.codes == [], "nothing is waited for while sampling"
    assert guarded.codes == ["LG202"] and guarded.reports[0][0].evidence["step"] == 2


def test_a_latent_that_no_step_made_so(make_vae):
    vae = make_vae()
    with on(*vae_boundaries(vae)) as guarded, torch.no_grad():
        vae.decode(torch.full((1, 4, 8, 8), float("nan")))
    assert "no step of sampling made it so" in guarded.reports[0][0].saw


def test_healthy_sampling_says_nothing(make_vae, unet):
    vae = make_vae()
    with on(*vae_boundaries(vae), Boundary("unet", unet)) as guarded, torch.no_grad():
        vae.decode(sample(unet, guarded.host, steps=3, bad=0))
    assert guarded.reports == []


def test_an_error_of_ours_never_stops_a_decode(overflowing, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(FiniteGuard, "_look", fail)
    guarded = on(*vae_boundaries(overflowing))
    with guarded:
        assert not decode(overflowing).isfinite().all()
        assert [finding.code for finding in guarded.own_failures] == ["LG001"]
        guarded.own_failures.clear()
