"""The precision guard on a real AutoencoderKL: the fault first, then the cure, then that nothing is left."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_guard.border import Border
from lib_guard.findings import Finding, Repair
from lib_guard.guards import GuardContext, PrecisionGuard
from lib_guard.guards.vae_crossing import VaeCrossing
from lib_guard.hooks import marked
from lib_guard.hosts.base import Detour, Shield
from lib_guard.hosts.diffusers import vae_boundaries
from lib_guard.settings import Settings

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32


@dataclass
class OneVae:
    """A host that has a VAE and nothing else."""

    vae: nn.Module
    all_shields: tuple[Shield, ...] = ()
    title: str = "one VAE"

    def boundaries(self):
        return vae_boundaries(self.vae)

    def arrivals(self):
        return ()

    def shields(self):
        return self.all_shields

    def left_behind(self, put_back):
        return ()

    def explain(self, finding: Finding) -> Finding:
        return finding


@dataclass
class Guarded:
    """The guard on one VAE, for the length of a `with`."""

    vae: nn.Module
    settings: Settings = field(default_factory=Settings)
    shields: tuple[Shield, ...] = ()
    reports: list[tuple[Finding, Repair | None]] = field(default_factory=list)
    own_failures: list[Finding] = field(default_factory=list)

    def __enter__(self) -> Guarded:
        border = Border(self.own_failures.append)
        context = GuardContext(
            OneVae(self.vae, self.shields), self.settings, border, lambda f, r: self.reports.append((f, r))
        )
        self.guard = PrecisionGuard(context)
        self.guard.attach()
        return self

    def __exit__(self, *raised: object) -> None:
        self.guard.detach()
        assert not marked(self.vae) and not {"encode", "decode"} & set(vars(self.vae))
        assert torch.overrides._get_current_function_mode() is None
        if raised[0] is None:
            assert self.own_failures == []

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding, _ in self.reports]


@torch.no_grad()
def decode(vae: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(1)
    return vae.decode(torch.randn(1, 4, 8, 8).to(dtype), return_dict=False)[0]


@torch.no_grad()
def encode(vae: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(1)
    drawn = vae.encode((torch.rand(1, 3, 16, 16) * 2 - 1).to(dtype)).latent_dist
    return drawn.sample(torch.Generator().manual_seed(2))


PASSES = {"decode": decode, "encode": encode}


def failing(call, vae: nn.Module, dtype: torch.dtype) -> str:
    """The error of a call without LibGuard; a test of a cure starts with it."""
    with pytest.raises(RuntimeError) as raised:
        call(vae, dtype)
    return str(raised.value)


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("narrow", [HALF, BF16], ids=str)
def test_a_narrow_caller_of_a_float32_vae_gets_the_healthy_result(make_vae, direction, narrow):
    call, vae = PASSES[direction], make_vae()
    assert "should be the same" in failing(call, vae, narrow)
    with Guarded(vae) as guarded:
        result = call(vae, narrow)
    reference = {"decode": decode_aligned, "encode": encode_aligned}[direction](make_vae(), narrow)
    assert torch.equal(result, reference) and result.dtype is reference.dtype
    (finding, repair), *rest = guarded.reports
    assert not rest and finding.code == {"decode": "LG101", "encode": "LG102"}[direction]
    assert repair.proof == "result finite" and repair.did.startswith(f"{direction}d in float32, 1 operation")
    assert finding.evidence["module"] == {"decode": "post_quant_conv", "encode": "encoder.conv_in"}[direction]


def decode_aligned(vae: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """What a caller gets who casts the latents to the VAE's dtype."""
    torch.manual_seed(1)
    with torch.no_grad():
        return vae.decode(torch.randn(1, 4, 8, 8).to(dtype).to(vae.dtype), return_dict=False)[0]


def encode_aligned(vae: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """What a caller gets who casts the picture to the VAE's dtype and the latents back to its own."""
    torch.manual_seed(1)
    picture = (torch.rand(1, 3, 16, 16) * 2 - 1).to(dtype)
    with torch.no_grad():
        drawn = vae.encode(picture.to(vae.dtype)).latent_dist
    return drawn.sample(torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("direction", PASSES)
def test_a_float32_caller_of_a_half_vae_gets_the_half_vaes_result(make_vae, direction):
    call = PASSES[direction]
    vae, aligned = make_vae().half(), {"decode": decode_aligned, "encode": encode_aligned}[direction]
    failing(call, vae, FLOAT)
    with Guarded(vae) as guarded:
        result = call(vae, FLOAT)
    assert result.dtype is FLOAT and torch.equal(result, aligned(make_vae().half(), FLOAT).float())
    assert len(guarded.codes) == 1


MIXES = {
    "decoder half": lambda vae: vae.decoder.half(),
    "encoder half": lambda vae: vae.encoder.half(),
    "post_quant_conv half": lambda vae: vae.post_quant_conv.half(),
    "quant_conv half": lambda vae: vae.quant_conv.half(),
    "one block bfloat16": lambda vae: (vae.decoder.mid_block.to(BF16), vae.encoder.mid_block.to(BF16)),
    "half weight, float bias": lambda vae: [
        setattr(part.conv_in, "weight", nn.Parameter(part.conv_in.weight.half())) for part in (vae.decoder, vae.encoder)
    ],
    "parameters through .data": lambda vae: [
        setattr(p, "data", p.data.half()) for part in (vae.decoder, vae.encoder) for p in part.up_or_down()
    ],
}


def convert(vae: nn.Module, mix: str) -> None:
    for part, blocks in ((vae.decoder, "up_blocks"), (vae.encoder, "down_blocks")):
        part.up_or_down = lambda part=part, blocks=blocks: getattr(part, blocks).parameters()
    MIXES[mix](vae)
    for part in (vae.decoder, vae.encoder):
        del part.up_or_down


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("caller", [FLOAT, HALF], ids=str)
def test_a_mixed_vae_gives_a_picture_near_the_float32_one(make_vae, direction, mix, caller):
    call, vae = PASSES[direction], make_vae()
    convert(vae, mix)
    try:
        call(vae, caller)
    except RuntimeError:
        pass
    else:
        pytest.skip(f"{direction} does not meet the mixed part, so there is nothing to cure")
    dtypes = [parameter.dtype for parameter in vae.parameters()]
    with Guarded(vae) as guarded:
        result = call(vae, caller)
    assert dtypes == [parameter.dtype for parameter in vae.parameters()], "a guard never casts a model"
    healthy = call(make_vae(), FLOAT)
    assert torch.isfinite(result).all() and (result.float() - healthy).abs().max() < 0.06
    assert guarded.codes == ["LG103"] and " in float32" in guarded.reports[0][1].did


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT], ids=str)
def test_a_healthy_pass_keeps_every_bit_and_says_nothing(make_vae, direction, dtype):
    call, vae = PASSES[direction], make_vae().to(dtype)
    without = call(vae, dtype)
    with Guarded(vae) as guarded:
        result = call(vae, dtype)
    assert torch.equal(result, without) and result.dtype is without.dtype and guarded.reports == []


@pytest.mark.parametrize("direction", PASSES)
def test_autocast_is_healthy_and_left_alone(make_vae, direction):
    call, vae = PASSES[direction], make_vae()
    with torch.autocast("cpu", BF16):
        without = call(vae, HALF)
        with Guarded(vae) as guarded:
            result = call(vae, HALF)
    assert torch.equal(result, without) and guarded.reports == []


def test_a_vae_whose_layers_cast_by_themselves_is_healthy_and_left_alone(make_vae):
    """Forge's manual cast (backend/operations.py): the layer casts its weights to what comes in."""
    vae = make_vae().half()
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = lambda x, m=module: F.conv2d(
                x, m.weight.to(x.dtype), m.bias.to(x.dtype), m.stride, m.padding
            )
        elif isinstance(module, (nn.GroupNorm, nn.Linear)):
            module.float()
    without = decode(vae, FLOAT)
    with Guarded(vae) as guarded:
        result = decode(vae, FLOAT)
    assert torch.equal(result, without) and guarded.reports == []


def test_a_layer_that_casts_inside_is_named(make_vae, monkeypatch):
    """A class-patched Conv2d.forward that casts its input, as AUTOMATIC1111's functional LoRA path has it."""
    vae, plain = make_vae(), nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: plain(self, x.half()))
    failing(decode, vae, FLOAT)
    with Guarded(vae) as guarded:
        assert torch.isfinite(decode(vae, FLOAT)).all()
    assert guarded.codes == ["LG104"] and "float16" in guarded.reports[0][0].saw


@pytest.mark.parametrize("tiled", ["tiling", "slicing"])
def test_tiles_and_slices_are_one_pass(make_vae, tiled):
    vae = make_vae()
    getattr(vae, f"enable_{tiled}")()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 4, 8
    failing(decode, vae, HALF)
    with Guarded(vae) as guarded:
        result = decode(vae, HALF)
    assert torch.equal(result, decode_aligned(vae, HALF)) and guarded.codes == ["LG101"]


def test_parts_called_without_the_method_are_guarded_too(make_vae):
    vae = make_vae()
    latents = torch.randn(1, 4, 8, 8).half()
    with pytest.raises(RuntimeError):
        vae.decoder(latents)
    with Guarded(vae) as guarded, torch.no_grad():
        assert torch.equal(vae.decoder(latents), vae.decoder(latents.float()))
    assert guarded.codes == ["LG101"]


def test_warn_says_it_and_lets_it_fail(make_vae):
    vae = make_vae()
    error = failing(decode, vae, HALF)
    with Guarded(vae, Settings(precision="warn")) as guarded:
        assert failing(decode, vae, HALF) == error
    assert guarded.codes == ["LG101"] and guarded.reports[0][1] is None


@pytest.mark.parametrize("stored", [HALF, BF16, FLOAT], ids=str)
@pytest.mark.parametrize("chosen", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("direction", PASSES)
def test_the_chosen_precision_computes_in_it_without_casting_the_vae(make_vae, stored, chosen, direction):
    call, vae = PASSES[direction], make_vae().to(stored)
    plain = call(vae, stored)
    with Guarded(vae, Settings(vae_precision=chosen)) as guarded:
        result = call(vae, stored)
    wanted = getattr(torch, chosen)
    assert {parameter.dtype for parameter in vae.parameters()} == {stored}
    assert guarded.reports == [] and torch.isfinite(result).all()
    assert result.dtype is (torch.promote_types(stored, wanted) if direction == "decode" else stored)
    if wanted is stored:
        assert torch.equal(result, plain)
    else:
        assert not torch.equal(result.float(), plain.float())


def test_an_interrupt_inside_leaves_no_mode_behind(make_vae):
    """torch calls no hook, not even one registered with always_call, when what was raised is no Exception."""
    vae = make_vae()

    def interrupt(*args):
        raise KeyboardInterrupt

    handle = vae.decoder.mid_block.register_forward_hook(interrupt)
    with Guarded(vae), pytest.raises(KeyboardInterrupt):
        decode(vae, FLOAT)
    handle.remove()
    with Guarded(vae) as guarded, torch.no_grad():
        handle = vae.decoder.mid_block.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            vae.decoder(torch.randn(1, 4, 8, 8))
        handle.remove()
        assert torch.equal(decode(vae, HALF), decode_aligned(make_vae(), HALF))
    assert guarded.codes == ["LG101"]


def test_two_threads_are_guarded_each_for_itself(make_vae):
    vae, results = make_vae(), {}
    with Guarded(vae) as guarded:
        threads = [
            threading.Thread(target=lambda d=dtype: results.update({d: encode_own(vae, d)})) for dtype in (HALF, FLOAT)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results[HALF].dtype is HALF and results[FLOAT].dtype is FLOAT
    assert set(guarded.codes) == {"LG102"}


@torch.no_grad()
def encode_own(vae: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    for _ in range(5):
        drawn = vae.encode(torch.ones(1, 3, 16, 16, dtype=dtype)).latent_dist.sample()
    return drawn


@pytest.mark.parametrize("broken", ["_enter", "_finish_part", "_note", "_prefer", "_hand_back", "_report"])
def test_an_error_of_ours_never_stops_a_pass(make_vae, monkeypatch, broken):
    def fail(*args, **kwargs):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(VaeCrossing, broken, fail)
    vae = make_vae()
    expected = decode(vae, FLOAT)
    guarded = Guarded(vae)
    with guarded:
        assert torch.equal(decode(vae, FLOAT), expected)
        with torch.no_grad():
            vae.encode(torch.ones(1, 3, 16, 16)).latent_dist.sample()
        guarded.own_failures.clear()


def test_a_compiled_or_absent_vae_is_left_alone(make_vae):
    vae = make_vae()
    vae.decoder._compiled_call_impl = lambda *a, **k: None
    assert [boundary.direction for boundary in vae_boundaries(vae)] == ["encode"]
    assert vae_boundaries(None) == [] and vae_boundaries(torch.jit.script(nn.ReLU())) == []


@pytest.fixture
def patched_layers(monkeypatch):
    """All Conv2d and GroupNorm of the process run through one function that casts to half, as AUTOMATIC1111's
    functional LoRA path does; yields its owner."""
    owner = SimpleNamespace(casts=0)

    def through(layer, x, original):
        owner.casts += 1
        return original(layer, x.half())

    owner.through = through
    for kind in (nn.Conv2d, nn.GroupNorm):
        plain = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, plain=plain: owner.through(self, x, plain))
    return owner


def shield_of(owner: SimpleNamespace) -> Shield:
    def detour(layer, x, original):
        return None if x.dtype is HALF else Detour(layer, x.dtype, HALF, lambda: original(layer, x))

    return Shield(owner, "through", detour)


@pytest.mark.parametrize("direction", PASSES)
def test_a_shielded_vae_gives_what_its_own_layers_compute(make_vae, patched_layers, direction):
    call, vae, foreign = PASSES[direction], make_vae(), nn.Conv2d(3, 3, 1).half()
    failing(call, vae, FLOAT)
    through, casts = patched_layers.through, patched_layers.casts
    with Guarded(vae, shields=(shield_of(patched_layers),)) as guarded:
        result = call(vae, FLOAT)
        assert patched_layers.casts == casts, "the VAE's layers were led around the cast"
        assert foreign(torch.ones(1, 3, 2, 2)).dtype is HALF, "nobody else's were"
    assert patched_layers.through is through and marked(patched_layers) == []
    (finding, repair), *rest = guarded.reports
    assert not rest and finding.code == "LG105" and repair.proof == "result finite"
    assert finding.evidence["dtypes"] == "float32, float16" and finding.evidence["layers"] > 5
    first = {"decode": "post_quant_conv", "encode": "encoder.conv_in"}[direction]
    assert finding.evidence["module"] == first and f"{first} and " in finding.saw

    patched_layers.through = lambda layer, x, original: original(layer, x)
    assert torch.equal(result, call(make_vae(), FLOAT))


def test_a_function_that_changes_no_dtype_runs_as_it_is(make_vae, patched_layers):
    vae = make_vae().half()
    healthy = decode(vae, HALF)
    casts = patched_layers.casts
    with Guarded(vae, shields=(shield_of(patched_layers),)) as guarded:
        assert torch.equal(decode(vae, HALF), healthy)
    assert guarded.reports == [] and patched_layers.casts == 2 * casts


def test_warn_puts_up_no_shield(make_vae, patched_layers):
    vae = make_vae()
    with Guarded(vae, Settings(precision="warn"), (shield_of(patched_layers),)) as guarded:
        failing(decode, vae, FLOAT)
    assert guarded.codes == ["LG104"]


def test_a_shield_that_fails_leaves_the_function_as_it_is(make_vae, patched_layers):
    def detour(*_: object) -> None:
        raise ValueError("a mistake of ours")

    vae = make_vae().half()
    healthy = decode(vae, HALF)
    with Guarded(vae, shields=(Shield(patched_layers, "through", detour),)) as guarded:
        assert torch.equal(decode(vae, HALF), healthy)
        assert [finding.code for finding in guarded.own_failures] == ["LG001"]
        guarded.own_failures.clear()
