"""The precision guard on components that are called: the fault first, then the cure, then that nothing is left."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from one_model import Guarded, OneModel, needs_half_kernels
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from lib_guard.guards import component_crossing
from lib_guard.hooks import marked
from lib_guard.hosts.base import Arrival, Boundary
from lib_guard.settings import Settings
from lib_guard.tensors import reconcile

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32

_SHAPE = {
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


@pytest.fixture
def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet2DConditionModel(**_SHAPE, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()


@pytest.fixture
def controlnet() -> nn.Module:
    torch.manual_seed(0)
    model = ControlNetModel(**_SHAPE, conditioning_embedding_out_channels=(8, 8)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=63,
    )
    return CLIPTextModelWithProjection(config).eval()


def on(component: str, module: nn.Module, **kwargs) -> Guarded:
    return Guarded(OneModel(lambda: [Boundary(component, module)]), **kwargs)


@torch.no_grad()
def denoise(unet: nn.Module, dtype: torch.dtype, context: torch.dtype | None = None, **kwargs) -> torch.Tensor:
    torch.manual_seed(1)
    sample, text = torch.randn(1, 4, 8, 8).to(dtype), torch.randn(1, 5, 16).to(context or dtype)
    return unet(sample, 500.0, encoder_hidden_states=text, **kwargs).sample


@torch.no_grad()
def embed(encoder: nn.Module):
    return encoder(torch.tensor([[0, 5, 9, 63]]), output_hidden_states=True)


def failing(call, *args, **kwargs) -> str:
    with pytest.raises((RuntimeError, TypeError)) as raised:
        call(*args, **kwargs)
    return str(raised.value)


# The faults.


@needs_half_kernels
@pytest.mark.parametrize("dtype", [HALF, BF16], ids=str)
def test_a_float_context_in_a_narrow_unet_gives_what_an_aligned_caller_gets(unet, dtype):
    unet.to(dtype)
    assert "dtype" in failing(denoise, unet, dtype, FLOAT)
    with on("unet", unet) as guarded:
        result = denoise(unet, dtype, FLOAT)
    assert torch.equal(result, denoise(unet, dtype)) and result.dtype is dtype
    (finding, repair), *rest = guarded.reports
    assert not rest and finding.code == "LG112" and finding.component == "unet"
    assert "and was given float32 encoder_hidden_states" in finding.saw and repair.proof == "result finite"


@needs_half_kernels
@pytest.mark.parametrize("stray", [HALF, BF16], ids=str)
def test_a_unet_with_one_block_of_another_dtype(unet, stray):
    dtype = BF16 if stray is HALF else HALF
    unet.to(dtype).mid_block.to(stray)
    assert failing(denoise, unet, dtype)
    with on("unet", unet) as guarded:
        result = denoise(unet, dtype)
        again = denoise(unet, dtype)
    assert result.dtype is dtype and result.isfinite().all() and torch.equal(result, again)
    finding, repair = guarded.reports[0]
    assert finding.code == "LG111" and "mid_block" in finding.saw and repair.did.startswith("computed in float32")
    assert {p.dtype for p in unet.mid_block.parameters()} == {stray}


@needs_half_kernels
@pytest.mark.parametrize(("own", "stray"), [(BF16, HALF), (HALF, BF16)], ids=str)
def test_a_projection_of_another_dtype_in_a_text_encoder(encoder, own, stray):
    encoder.to(own).text_projection.to(stray)
    assert failing(embed, encoder)
    with on("text_encoder_3", encoder) as guarded:
        result = embed(encoder)
    assert result.text_embeds.dtype is own and result.last_hidden_state.dtype is own
    assert result[0] is result.text_embeds
    finding, _ = guarded.reports[0]
    assert finding.code == "LG111" and f"text_projection in {str(stray)[6:]} (1 tensor)" in finding.saw
    assert finding.saw.startswith("the text encoder 3 is")


def test_a_float_controlnet_gives_the_pipeline_residuals_of_its_own_dtype(unet, controlnet):
    def control():
        torch.manual_seed(1)
        sample, text = torch.randn(1, 4, 8, 8).to(HALF), torch.randn(1, 5, 16).to(HALF)
        with torch.no_grad():
            down, mid = controlnet(sample, 500.0, text, torch.ones(1, 3, 16, 16).to(HALF), return_dict=False)
        return denoise(unet, HALF, down_block_additional_residuals=down, mid_block_additional_residual=mid)

    unet.half()
    assert failing(control)
    with on("controlnet", controlnet) as guarded:
        result = control()
    assert result.dtype is HALF and guarded.codes == ["LG112"]


@needs_half_kernels
def test_something_inside_that_changes_the_dtype_is_told_with_its_place(unet):
    unet.half().mid_block.resnets[0].register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))
    assert failing(denoise, unet, HALF)
    with on("unet", unet) as guarded:
        assert denoise(unet, HALF).dtype is HALF
    finding, _ = guarded.reports[0]
    assert finding.code == "LG113" and finding.evidence["module"].startswith("mid_block.resnets.0")
    assert "diffusers/models/" in finding.evidence["place"] and "/root" not in str(finding.evidence)
    assert finding.evidence["called_from"].startswith("test_components.py:")


@needs_half_kernels
def test_an_extension_in_the_call_is_named(unet, tmp_path):
    file = tmp_path / "extensions" / "some-extension" / "scripts" / "patch.py"
    file.parent.mkdir(parents=True)
    file.write_text("def forward(self, x, *rest, **more):\n    return self._before(x.float(), *rest, **more)\n")
    spec = importlib.util.spec_from_file_location("patch", file)
    patch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(patch)
    layer = unet.half().conv_in
    layer._before, layer.forward = layer.forward, patch.forward.__get__(layer)
    assert failing(denoise, unet, HALF)
    with on("unet", unet) as guarded:
        denoise(unet, HALF)
    finding, _ = guarded.reports[0]
    assert finding.evidence["extension"] == "some-extension"
    assert finding.evidence["place"] == "extensions/some-extension/scripts/patch.py:2"
    assert "some-extension" in finding.cause and str(tmp_path) not in str(finding)


@pytest.mark.parametrize("dtype", [HALF, BF16], ids=lambda dtype: f"P17-unit-{dtype}")
def test_an_operation_that_the_device_has_no_kernel_for(unet, dtype):
    """On torch 2.1 a half UNet has hardly any on a CPU; on new versions the distance of two vectors still has none."""

    def distance(module, args, output):
        return output + torch.cdist(output.flatten(1), output.flatten(1)).mean()

    unet.to(dtype).conv_out.register_forward_hook(distance)
    assert "not implemented for" in failing(denoise, unet, dtype)
    with on("unet", unet) as guarded:
        result = denoise(unet, dtype)
        assert torch.equal(denoise(unet, dtype), result)
    assert result.dtype is dtype and result.isfinite().all()
    finding, repair = guarded.reports[0]
    assert finding.code == "LG114" and repair.did.startswith("computed in float32") and repair.proven


# Harmless where nothing is wrong.


@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT], ids=str)
def test_a_healthy_unet_keeps_every_bit_and_runs_without_the_mode_from_its_second_call_on(unet, dtype, monkeypatch):
    entered = []
    enter = reconcile.Reconcile.enter
    monkeypatch.setattr(reconcile.Reconcile, "enter", lambda mode: (entered.append(mode), enter(mode)))
    unet.to(dtype)
    expected = denoise(unet, dtype)
    with on("unet", unet) as guarded:
        assert all(torch.equal(denoise(unet, dtype), expected) for _ in range(4))
    assert guarded.reports == [] and len(entered) == 1


def test_other_dtypes_than_before_are_looked_at_anew(unet):
    unet.half()
    with on("unet", unet) as guarded:
        denoise(unet, HALF)
        denoise(unet, HALF, FLOAT)
    assert guarded.codes == ["LG112"]


@needs_half_kernels
def test_a_component_that_raised_is_watched_in_the_next_generation_as_well(unet):
    unet.half()
    quantized = unet.conv_out
    quantized.register_parameter("codes", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    with on("unet", unet) as guarded, pytest.raises(RuntimeError):
        denoise(unet, HALF, FLOAT)
    assert guarded.reports == [], "quantized layers are left alone until a call has raised"
    with on("unet", unet) as guarded:
        assert denoise(unet, HALF, FLOAT).dtype is HALF
    assert guarded.codes == ["LG112"]


def test_attention_with_a_fast_path_keeps_it_while_nothing_is_wrong():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    given = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = layer(given)
        with on("image_encoder", layer):
            assert torch.equal(layer(given), expected)
        layer.linear1.half()
        assert failing(layer, given)
        with on("image_encoder", layer) as guarded:
            assert layer(given).dtype is FLOAT
    assert guarded.codes == ["LG111"]


def test_an_aborting_device_is_never_given_unequal_dtypes(unet, monkeypatch):
    monkeypatch.setattr(reconcile, "ABORTING_DEVICES", frozenset({"cpu"}))
    unet.half()
    with on("unet", unet) as guarded:
        denoise(unet, HALF)
        assert torch.equal(denoise(unet, HALF, FLOAT), denoise(unet, HALF))
    finding = guarded.reports[0][0]
    assert finding.code == "LG112" and finding.evidence["error"] == ""


@needs_half_kernels
def test_warn_says_it_and_lets_it_fail(unet):
    unet.half()
    with on("unet", unet, settings=Settings(precision="warn")) as guarded:
        assert "dtype" in failing(denoise, unet, HALF, FLOAT)
    assert guarded.reports[0][0].code == "LG112" and guarded.reports[0][1] is None


def test_off_attaches_nothing(unet):
    with on("unet", unet, settings=Settings(precision="off", finite="off")):
        assert marked(unet) == []


@pytest.mark.parametrize("broken", ["_enter", "_finish", "_note", "_prefer"])
def test_an_error_of_ours_never_stops_a_call(unet, monkeypatch, broken):
    def fail(*args, **kwargs):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(component_crossing.ComponentCrossing, broken, fail)
    expected = denoise(unet, FLOAT)
    guarded = on("unet", unet)
    with guarded:
        assert torch.equal(denoise(unet, FLOAT), expected)
        guarded.own_failures.clear()


def test_an_interrupt_inside_leaves_no_mode_behind(unet, monkeypatch):
    class Interrupt(BaseException):
        pass

    def interrupt(*args, **kwargs):
        raise Interrupt

    with on("unet", unet):
        with monkeypatch.context() as patch, pytest.raises(Interrupt):
            patch.setattr(unet.conv_out, "forward", interrupt)
            denoise(unet, FLOAT)
        denoise(unet, FLOAT)
        assert torch.overrides._get_current_function_mode() is None


def test_a_component_exchanged_in_mid_generation_is_let_go_and_the_new_one_guarded(unet):
    torch.manual_seed(3)
    other = UNet2DConditionModel(**_SHAPE, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval().half()
    holder = SimpleNamespace(unet=unet.half())

    def exchange(new: nn.Module) -> None:
        assert marked(holder.unet) == [], "it is let go before the host exchanges it"
        holder.unet = new

    holder.exchange = exchange
    host = OneModel(lambda: [Boundary("unet", holder.unet)], all_arrivals=(Arrival(holder, "exchange"),))
    with Guarded(host) as guarded:
        denoise(holder.unet, HALF)
        holder.exchange(other)
        assert marked(other) and not marked(unet)
        assert denoise(other, HALF, FLOAT).dtype is HALF
    assert guarded.codes == ["LG112"] and holder.exchange is exchange and marked(other) == []


def test_one_arrival_inside_another_attaches_once_and_none_after_the_end(unet):
    holder = SimpleNamespace(unet=unet.half(), inner=lambda: None, ends=[])
    holder.outer = lambda: (holder.inner(), *(end() for end in holder.ends))
    arrivals = (Arrival(holder, "inner"), Arrival(holder, "outer"))
    host = OneModel(lambda: [Boundary("unet", holder.unet)], all_arrivals=arrivals)
    with Guarded(host) as guarded:
        before = len(marked(unet))
        holder.outer()
        assert len(marked(unet)) == before
        holder.ends = [guard.detach for guard in guarded._guards]
        holder.outer()
        assert marked(unet) == []


def test_a_textual_inversion_in_the_second_text_is_met_too(encoder):
    """AUTOMATIC1111 encodes the negative prompt first, and the vectors are in the other one (sd_hijack.py:362)."""
    vectors, table = torch.randn(1, 16, dtype=torch.float64), encoder.text_model.embeddings.token_embedding

    def put_in(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if 9 in args[0]:
            output[:, torch.tensor([2])] = vectors

    table.register_forward_hook(put_in)
    without = torch.tensor([[0, 5, 8, 63]])
    with torch.no_grad():
        encoder(without)
    assert "Index put requires" in failing(embed, encoder)
    with torch.no_grad(), on("text_encoder", encoder) as guarded:
        encoder(without)
        cured = embed(encoder)
    assert guarded.codes == ["LG113"]
    vectors = vectors.float()
    assert torch.equal(cured.text_embeds, embed(encoder).text_embeds)
