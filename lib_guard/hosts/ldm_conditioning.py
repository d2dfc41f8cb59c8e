"""The caches of encoded prompts that AUTOMATIC1111 and Forge, its fork, keep between requests.

p.cached_c, .cached_uc, .cached_hr_c, .cached_hr_uc
                                lists of the classes, [key, encoded] (Forge has an infotext behind them); the key
                                holds the tags of the prompt and nothing else of what LoRAs do (modules/processing.py
                                :440-458 in AUTOMATIC1111 1.10.1, :413 in Forge dfdcbab6)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")

#: Which tags and which prompts a request has, for both of its passes.
_TAGS = ("extra_network_data", "hr_extra_network_data")
_PROMPTS = ("prompts", "negative_prompts", "hr_prompts", "hr_negative_prompts")


class ConditioningCaches:
    """What is in the caches, and what the text encoder was when it was encoded: any value, which is compared."""

    def __init__(self) -> None:
        self._state: object = None
        #: The tags that were activated last.
        self._given: list[Any] = []
        self._encoded: list[tuple[Any, object]] = []

    def note(self, request: Any, params: Sequence[Any] | None, state: object) -> None:
        """These tags are activated, and the text encoder is `state` from here on. What came into the caches since the
        last time was encoded in the state of then."""
        known = {id(key): before for key, before in self._encoded}
        keys = [cache[0] for cache in _caches(request) if cache[0] is not None]
        self._encoded = [(key, known.get(id(key), self._state)) for key in keys]
        self._state, self._given = state, list(params or ())

    def correct(self, state: object) -> None:
        """Nothing was encoded since `note`, and the text encoder is `state` after all."""
        self._state = state

    def forget(self, request: Any) -> int:
        """Empty all of them. Returns how many entries this request would have been given, though they are known to have
        been encoded in another state."""
        tags = self._tags_of(request)
        own = [list(found) for name in _PROMPTS if isinstance(found := getattr(request, name, None), (list, tuple))]
        outlived = 0
        for cache in _caches(request):
            state = next((state for key, state in self._encoded if key is cache[0]), self._state)
            outlived += state not in (None, self._state) and _has_key_of(cache, tags, own)
            cache[:] = [None] * len(cache)
        self._encoded.clear()
        return outlived

    def _tags_of(self, request: Any) -> Mapping[str, Any] | None:
        """The tags in the keys of what is about to be encoded: of the two passes' those that were activated. An option
        may have added one, which no key tells."""
        held = [found for name in _TAGS if isinstance(found := getattr(request, name, None), dict)]
        fitting = [tags for tags in held if self._given[: len(tags.get("lora", ()))] == list(tags.get("lora", ()))]
        return max(fitting, key=lambda tags: len(tags.get("lora", ())), default=held[0] if held else None)


def empty_caches() -> None:
    """Those of all requests, where nothing tells under what their text was encoded."""
    for cache in _caches(None):
        cache[:] = [None] * len(cache)


def _caches(request: Any) -> list[list[Any]]:
    """Every list once: a request holds those of its classes, unless they were made anew since."""
    from modules import processing

    classes = (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img)
    held: Iterable[Any] = (getattr(owner, name, None) for owner in (request, *classes) for name in _CACHES)
    return list({id(one): one for one in held if isinstance(one, list) and one}.values())


def _has_key_of(cache: Sequence[Any], tags: Mapping[str, Any] | None, prompts: Sequence[list[Any]]) -> bool:
    """Whether a cache's key has the tags and one of the prompts: all it knows of LoRAs are the tags."""
    key = cache[0]
    if not isinstance(key, tuple) or not key:
        return False
    return list(key[0]) in prompts and any(isinstance(part, dict) and part == tags for part in key[1:])
