"""The reported LoRA faults: what an earlier request leaves in the weights, and what does not get into them."""

from __future__ import annotations

from demo.faults import BASE, PROMPT, TXT2IMG, Call, Fault


def with_loras(*tags: str) -> Call:
    """txt2img with LoRAs, each as `name:strength`."""
    return Call("txt2img", {**BASE, "prompt": " ".join([PROMPT, *(f"<lora:{tag}>" for tag in tags)])})


CRIMSON, AZURE = with_loras("tiny-crimson:1"), with_loras("tiny-azure:1")

#: The ways in which hosts merge LoRAs into the weights; see demo/webui/modules/extra_networks_lora.py.
FUSED, FOR_GOOD = {"lora_method": "fused"}, {"lora_method": "fused for good"}


def _quick(call: Call) -> Call:
    """In one step, where only the weights matter."""
    return Call(call.endpoint, {**call.body, "steps": 1})


def _drift() -> list[Fault]:
    options = {**FUSED, "cuda_dtype": "BF16"}
    return [
        Fault(
            f"L15-D-{cycles}",
            f"bfloat16, LoRAs merged: {cycles} times with one and then without",
            options,
            TXT2IMG,
            before=((_quick(CRIMSON), _quick(TXT2IMG)) * cycles)[:-1],
            leaves=True,
        )
        for cycles in (1, 10, 50)
    ]


def _permanent() -> list[Fault]:
    rows = {
        "none": ("then none", TXT2IMG, (CRIMSON,)),
        "again": ("with it, without it, and with it again", CRIMSON, (CRIMSON, TXT2IMG)),
        "another": ("then another one", AZURE, (CRIMSON,)),
        "weaker": ("then at half the strength", with_loras("tiny-crimson:0.5"), (CRIMSON,)),
    }
    merged = "LoRAs merged for good (fuse_lora, unload_lora_weights)"
    return [
        Fault(f"L16-D-{key}", f"{merged}: a request with one, {title}", FOR_GOOD, request, before=before, leaves=True)
        for key, (title, request, before) in rows.items()
    ]


def _without_effect() -> list[Fault]:
    title = "A LoRA whose file has layers of no part of this model"
    idle = "A LoRA that was saved before it learnt anything"
    return [
        Fault("L18-D-nowhere", title, {}, with_loras("tiny-nowhere:1"), told="LG302", lost=TXT2IMG),
        Fault("L18-D-idle", idle, FUSED, with_loras("tiny-idle:1"), told="LG302", lost=TXT2IMG),
    ]


LORA_FAULTS: list[Fault] = [*_drift(), *_permanent(), *_without_effect()]
