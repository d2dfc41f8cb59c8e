"""What a guard saw, what it did about it, and the table of codes that explains both.

A finding is data, never a bare string: console, accordion, infotext and reports all render the same record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: The name under which LibGuard speaks of itself, where a guard's would stand.
LIBGUARD = "libguard"

#: Evidence and the like: JSON primitives only, so that a record can be saved, sent and shown without a second thought.
Primitive = str | int | float | bool | None


@dataclass(frozen=True)
class Code:
    """One kind of fault.

    title: what it is, in a few words. cause: how it usually comes about. cure: what LibGuard does about it.
    permanent_fix: how to be rid of the cause. A host's adapter may know both more exactly (`Host.explain`).
    curable: whether there is anything to be done about it; where there is not, `cure` says why.
    """

    id: str
    title: str
    cause: str
    cure: str
    permanent_fix: str
    curable: bool = True


_TABLE = (
    Code(
        id="LG001",
        title="LibGuard itself failed",
        cause="A defect of LibGuard, or a host that works differently from those it was tested on.",
        cure="The error is caught, the guard is off until the next request, and the generation goes on as without it.",
        permanent_fix="Report the line to LibGuard's issue tracker; until then set this guard to Off.",
    ),
    Code(
        id="LG002",
        title="A script argument cannot be used",
        cause="A request brought an argument of the wrong kind, usually through the API.",
        cure="The default is used in its place and the generation runs.",
        permanent_fix="Send the arguments that /sdapi/v1/script-info lists for LibGuard, in that order.",
    ),
    Code(
        id="LG003",
        title="A setting cannot be used",
        cause="The host's settings file holds a value that LibGuard does not know, from an edit or another version.",
        cure="The built-in default is used in its place.",
        permanent_fix="Open Settings > LibGuard, choose a value and apply.",
    ),
    Code(
        id="LG004",
        title="This host lacks something that a guard needs",
        cause="The WebUI, or its version, is not one that LibGuard knows.",
        cure="The guard stays off; everything else works.",
        permanent_fix="Update LibGuard, or report host and version to its issue tracker.",
    ),
    Code(
        id="LG101",
        title="VAE decode: the latents are in another dtype than the VAE",
        cause="The VAE runs in another precision than the model, and what calls it hands the latents over as they are.",
        cure="The operation that would fail runs in the VAE's own dtype; the rest follows in that dtype.",
        permanent_fix="Use one precision for model and VAE.",
    ),
    Code(
        id="LG102",
        title="VAE encode: the picture is in another dtype than the VAE",
        cause="The VAE runs in another precision than the model, and what calls it hands the picture over as it is.",
        cure="The operation that would fail runs in the VAE's own dtype, and the latents go back in the caller's.",
        permanent_fix="Use one precision for model and VAE.",
    ),
    Code(
        id="LG103",
        title="The VAE holds weights of more than one dtype",
        cause="A part of the VAE was converted and the rest was not, by a mixed file or by an extension.",
        cure="Operations that would fail run in the dtype that loses nothing.",
        permanent_fix="Load a VAE file of one dtype, and reload the checkpoint.",
    ),
    Code(
        id="LG104",
        title="A layer inside the VAE changes the dtype of what passes through it",
        cause="Something patched the VAE's layers so that they cast their input, as functional LoRA modes do.",
        cure="The operation that would fail runs in the VAE's own dtype. What the layer's cast rounded stays rounded.",
        permanent_fix="Switch off the option or extension that patches the layers.",
    ),
    Code(
        id="LG105",
        title="The layers of the VAE would change the dtype of what passes through them",
        cause="Something patched the layers of the whole process so that they cast their input, as functional LoRA"
        " modes do, and the VAE does not compute in that dtype.",
        cure="The VAE's layers run their original forward, so nothing is rounded and nothing fails.",
        permanent_fix="Switch off the option or extension that patches the layers.",
    ),
    Code(
        id="LG106",
        title="A failed generation left the host's state changed",
        cause="An extension changed settings or layers for the length of a generation, and did not learn of its"
        " failure.",
        cure="What it changed is set back to what it was before that generation.",
        permanent_fix="Be rid of the failure itself; until then restart the WebUI after it, before settings are saved.",
    ),
    Code(
        id="LG111",
        title="A component holds weights of more than one dtype",
        cause="A part of it was converted and the rest was not, by a mixed file or by an extension.",
        cure="Operations that would fail run in the dtype that loses nothing; the result goes back in the caller's.",
        permanent_fix="Reload the checkpoint; if it stays, use a file of one dtype or drop what converts the part.",
    ),
    Code(
        id="LG112",
        title="A component was given tensors of another dtype than its own",
        cause="It runs in another precision than what calls it, and what calls it hands over what it has.",
        cure="The operation that would fail runs in the component's own dtype; the result goes back in the caller's.",
        permanent_fix="Load all components in one precision.",
    ),
    Code(
        id="LG113",
        title="Something inside a component changes the dtype of what passes through it",
        cause="An extension patched its layers, or added something of another precision: an embedding, a hypernetwork,"
        " an attention of its own.",
        cure="The operation that would fail runs in the component's own dtype. What was rounded before stays rounded.",
        permanent_fix="Switch off the option or extension that the line names.",
    ),
    Code(
        id="LG114",
        title="The device cannot compute an operation in this dtype",
        cause="The model is in half precision on a device whose torch has no such kernel, mostly on a CPU.",
        cure="The operation is computed in float32, and its result goes on in the dtype that it would have had.",
        permanent_fix="Run the model in float32 on this device, or update torch.",
    ),
    Code(
        id="LG201",
        title="The VAE overflowed: its result is not finite, what it was given is",
        cause="The VAE's activations grow past the largest number of its dtype (65504 in float16); SDXL's own does.",
        cure="The call is repeated in float32, or in bfloat16 where memory does not suffice. Only that call.",
        permanent_fix="Use a VAE that works in half precision (an fp16-fix one), or run it in float32 or bfloat16.",
    ),
    Code(
        id="LG202",
        title="The latent itself is not finite",
        cause="Sampling diverged, or a LoRA's file holds numbers that are not finite.",
        cure="Nothing is computed again, since no decode can bring such a picture back; the line says where it began.",
        permanent_fix="Leave out the LoRA that the line names; without one, run the UNet in bfloat16 or float32.",
        curable=False,
    ),
    Code(
        id="LG203",
        title="The VAE's result is not finite in any precision",
        cause="The VAE's file is broken: weights of it are not finite.",
        cure="Nothing is left to compute it in; the picture is as the host makes it.",
        permanent_fix="Load another VAE file.",
        curable=False,
    ),
    Code(
        id="LG301",
        title="The model carries a LoRA that is not asked for",
        cause="The WebUI did not take a LoRA of an earlier request out of the weights again, or not exactly.",
        cure="The weights are brought back to the checkpoint's, which is verified bit for bit, and text that was"
        " encoded meanwhile is encoded anew.",
        permanent_fix="Report the line to the WebUI's issue tracker; until then leave LibGuard on.",
    ),
    Code(
        id="LG302",
        title="A LoRA is asked for and changes nothing",
        cause="No layer of the model has the name or the size that the LoRA's file has layers for, or the WebUI could"
        " not load the file, or refused it.",
        cure="Nothing is changed: the picture is the one without it.",
        permanent_fix="Use a LoRA that was made for this kind of model, or load the model that it was made for.",
        curable=False,
    ),
    Code(
        id="LG303",
        title="Only a part of a LoRA is applied",
        cause="The file has layers that the model, or the WebUI, does not know, or tensors of it are missing.",
        cure="Nothing is changed: the WebUI applies what it knows.",
        permanent_fix="Update the WebUI, use a LoRA that was made for this model, or download the file anew.",
        curable=False,
    ),
    Code(
        id="LG304",
        title="A LoRA was made for another family of models",
        cause="LoRAs fit the family of models that they were trained on, and no other.",
        cure="Nothing is refused: the WebUI does with it what it can, and the rest of the request runs.",
        permanent_fix="Use a LoRA that was made for this kind of model, or load the model that it was made for.",
        curable=False,
    ),
    Code(
        id="LG305",
        title="Encoded prompts were kept from under other LoRAs",
        cause="The WebUI's cache of encoded prompts does not know everything that changes the text encoder.",
        cure="The cache is emptied, and the prompt is encoded anew.",
        permanent_fix='Name LoRAs in the prompt, where the cache sees them, and leave "Add network to prompt" at None.',
    ),
    Code(
        id="LG306",
        title="A LoRA's file cannot be read",
        cause="The file is damaged, or is no safetensors file whatever its name says.",
        cure="Nothing is changed: most WebUIs run the request without it.",
        permanent_fix="Download the file anew, or remove it.",
        curable=False,
    ),
    Code(
        id="LG307",
        title="A LoRA's file was replaced, and the WebUI still uses the old one",
        cause="The WebUI keeps what it has read of a file, and does not look whether the file is still the same.",
        cure="Nothing is changed: this request gets the file as it was.",
        permanent_fix="Give each version of a file its own name, or restart the WebUI.",
        curable=False,
    ),
    Code(
        id="LG308",
        title="Weights were changed that no LoRA of the request names",
        cause="An extension merges something into the model beside the WebUI's LoRAs, or the WebUI merged a LoRA into"
        " layers of another name.",
        cure="Nothing is changed now; before the next request the weights are compared with the checkpoint's again.",
        permanent_fix="Switch off the extensions of this request one by one.",
        curable=False,
    ),
    Code(
        id="LG401",
        title="The image encoder in place is not the one that the IP-Adapter needs",
        cause="The WebUI keeps the image encoder of an earlier adapter, or one that a checkpoint brought along, or it"
        " goes by the name of the adapter's file.",
        cure="It is unloaded in the WebUI's own way, and the right one is loaded from disk.",
        permanent_fix="None is needed while LibGuard is on; without it load the model anew between such adapters.",
    ),
    Code(
        id="LG402",
        title="An IP-Adapter is paired with a preprocessor whose image encoder it was not made for",
        cause="The preprocessor was chosen by hand, or by the file's name.",
        cure="The preprocessor is used whose image encoder the adapter was made for, in this request alone.",
        permanent_fix="Choose the preprocessor that the line names.",
    ),
    Code(
        id="LG403",
        title="IP-Adapters of one request need different image encoders",
        cause="The WebUI has one image encoder for all adapters of a request.",
        cure="The images are encoded beforehand, those of each adapter by its own encoder, one encoder at a time.",
        permanent_fix="Use adapters of one family together; encoders are then loaded once.",
    ),
    Code(
        id="LG404",
        title="An IP-Adapter of an earlier request is still in the model",
        cause="The WebUI failed to take it out, mostly because there were several of them.",
        cure="What it left in the model is taken out, and what was there before is put back.",
        permanent_fix="None is needed while LibGuard is on; without it load the model anew.",
    ),
    Code(
        id="LG405",
        title="The image encoder that an IP-Adapter needs is not there",
        cause="Its file is not on disk, or holds another encoder than its name says.",
        cure="Nothing is downloaded, and the picture comes without the adapter.",
        permanent_fix="Put the encoder that the line names where the WebUI looks for it.",
        curable=False,
    ),
    Code(
        id="LG406",
        title="An IP-Adapter was made for another family of models",
        cause="IP-Adapters fit the family of models that they were trained on, and no other.",
        cure="Nothing is refused: the WebUI does with it what it can.",
        permanent_fix="Use the adapter for this kind of model, or load the model that it was made for.",
        curable=False,
    ),
    Code(
        id="LG407",
        title="An IP-Adapter's file cannot be read",
        cause="The file is damaged, or is no safetensors file whatever its name says.",
        cure="Nothing is changed: most WebUIs run the request without it.",
        permanent_fix="Download the file anew, or remove it.",
        curable=False,
    ),
    Code(
        id="LG408",
        title="A later pass is handed an IP-Adapter's image, and its model has no adapter",
        cause="The WebUI brings adapters into the main model alone, and hands their images to the refiner too.",
        cure="The images are left out of that pass; the pass with the adapter has been computed with it.",
        permanent_fix="None is needed while LibGuard is on; without it use no refiner together with IP-Adapters.",
    ),
    Code(
        id="LG409",
        title="A request has nothing in the place of its list of IP-Adapters",
        cause="An extension made the request of a second pass by itself, or an API client sent null for the list.",
        cure="It is given an empty list, and runs without IP-Adapter, as it was meant to.",
        permanent_fix="Update the extension; in an API client leave ip_adapter_names out, or send an empty list.",
    ),
    Code(
        id="LG410",
        title="An IP-Adapter was taken out, and the model's attention was not put back",
        cause="The WebUI takes an adapter out by giving the model diffusers' plain attention, whatever attention is"
        " chosen: slower, with more memory, and with slightly different pictures until the model is loaded anew.",
        cure="The attention processors that the model had before the adapter are put back.",
        permanent_fix="None is needed while LibGuard is on; without it load the model anew after using IP-Adapters.",
    ),
)

#: Every code that LibGuard can say, by its id; docs/codes.md explains each, and a test holds that.
CODES: dict[str, Code] = {code.id: code for code in _TABLE}


@dataclass(frozen=True)
class Finding:
    """What was wrong.

    code: a key of `CODES`. guard: the guard's name, or `libguard`. component: whose fault it is about (`vae`).
    direction: `decode`, `encode` or empty. saw: the fault in one clause, for a person. evidence: the same as values.
    cause, permanent_fix: more exact than the code's own, where the host knows better; else empty.
    """

    code: str
    guard: str
    component: str
    direction: str
    saw: str
    evidence: dict[str, Primitive] = field(default_factory=dict)
    cause: str = ""
    permanent_fix: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"{self.code} is no code of LibGuard; known: {', '.join(CODES)}")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Findings with one key have one cause: within a generation they are counted, not repeated."""
        return self.code, self.component, self.direction, str(self.evidence.get("cause_key", ""))


@dataclass(frozen=True)
class Repair:
    """What was done about a finding.

    did: in one clause. proof: how it is known to have worked, empty when it is not. milliseconds: the extra time, 0
    where there is none to speak of.
    """

    did: str
    proof: str
    milliseconds: float

    @property
    def proven(self) -> bool:
        """Whether there is a proof at all."""
        return bool(self.proof)


def outcome(finding: Finding, repair: Repair | None) -> str:
    """What was done, in a clause; what LibGuard does about its own troubles is the code's cure and needs no repair."""
    if repair is not None:
        spent = f", {repair.milliseconds:.1f} ms" if repair.milliseconds else ""
        return f"{repair.did}, {repair.proof or 'not proven'}{spent}"
    code = CODES[finding.code]
    if finding.component == LIBGUARD or not code.curable:
        return code.cure.rstrip(".")
    return "left as it is (policy Warn)"


def sentence(finding: Finding, repair: Repair | None) -> str:
    """The one line for the console, without LibGuard's name: code, what was wrong, what was done, cause, lasting fix.

    Every part is LibGuard's own wording or a value it has cut to size; line breaks cannot come in.
    """
    code = CODES[finding.code]
    text = (
        f"{code.id} {finding.guard}: {finding.saw} -> {outcome(finding, repair)}. Cause: {finding.cause or code.cause}"
        f" Permanent fix: {finding.permanent_fix or code.permanent_fix} (docs/codes.md#{code.id.lower()})"
    )
    return " ".join(text.split())
