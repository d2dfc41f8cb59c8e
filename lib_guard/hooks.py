"""Attach to objects that are not ours, and leave no trace on them.

Native hook handles are used wherever a module is really called through `__call__`: they can be removed in any order
and leave nothing behind. A plain method (`vae.encode`) needs an instance attribute: it carries a mark, remembers what
was there before (which may be somebody else's instance attribute: AUTOMATIC1111's lowvram.py:135 puts one there), and
when somebody has wrapped it meanwhile it turns into a pass-through that takes itself away at the first chance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

#: The attribute by which LibGuard finds what it has put on foreign objects, also after its own code was reloaded.
#: Its value takes the marked thing away again.
MARK = "_lib_guard_undo"

PreHook = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], "tuple[tuple[Any, ...], dict[str, Any]] | None"]
PostHook = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
#: Given the method that was there before, returns what to call instead.
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class Attachments:
    """Everything that one owner has attached; `detach` takes all of it away, in reverse order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._undo)

    def around(self, module: torch.nn.Module, before: PreHook, after: PostHook) -> None:
        """Call `before` ahead of the module's forward and `after` behind it, also when the forward raised.

        `after` gets None as the output of a call that raised; what it returns, if not None, replaces the output.
        """
        first, last = _copy(before), _copy(after)
        # Last among the pre-hooks and first among the others, so that foreign hooks stay outside of the pair.
        self._hook(first, module.register_forward_pre_hook(first, with_kwargs=True))
        self._hook(last, module.register_forward_hook(last, with_kwargs=True, always_call=True, prepend=True))

    def behind(self, module: torch.nn.Module, after: PostHook) -> None:
        """Call `after` behind the module's forward when it came through; what it returns is ignored."""

        def look(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            after(module, args, kwargs, output)

        self._hook(look, module.register_forward_hook(look, with_kwargs=True))

    def _hook(self, hook: Callable[..., Any], handle: RemovableHandle) -> None:
        setattr(hook, MARK, handle.remove)
        self._undo.append(handle.remove)

    def method(self, owner: object, name: str, wrap: Wrap) -> None:
        """Put `wrap(previous)` in the place of the owner's method `name`, on the instance."""
        wrapper = _MethodWrapper(owner, name, wrap)
        wrapper.install()
        self._undo.append(wrapper.uninstall)

    def detach(self) -> None:
        """Take everything away. Calling it again does nothing."""
        while self._undo:
            self._undo.pop()()


class _MethodWrapper:
    """A replaced method and the way back."""

    def __init__(self, owner: object, name: str, wrap: Wrap) -> None:
        self._owner = owner
        self._name = name
        self._own_before = name in vars(owner)
        #: As it lies there, which for a class's static method is not what is called.
        self._kept = vars(owner).get(name)
        self._before: Callable[..., Any] = getattr(owner, name)
        inner = wrap(self._before)

        @functools.wraps(self._before)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._active:
                return inner(*args, **kwargs)
            # Somebody who had wrapped this one put it back after it was taken away.
            self._take_away()
            return self._before(*args, **kwargs)

        setattr(call, MARK, self.uninstall)
        self._call: Any = call
        if isinstance(self._kept, staticmethod):
            self._call = staticmethod(call)
            setattr(self._call, MARK, self.uninstall)
        self._active = False

    def install(self) -> None:
        self._active = True
        setattr(self._owner, self._name, self._call)

    def uninstall(self) -> None:
        self._active = False
        self._take_away()

    def _take_away(self) -> None:
        if vars(self._owner).get(self._name) is not self._call:
            return
        if self._own_before:
            setattr(self._owner, self._name, self._kept)
        else:
            delattr(self._owner, self._name)


def sweep(owner: object) -> int:
    """Remove everything that carries LibGuard's mark from an object, of a torch module the whole tree; returns how many
    things there were.

    A reloaded UI executes the extension anew while the model stays, so hooks of the code before may still be on it.
    """
    found = [thing for _, thing in _marked_things(owner)]
    for thing in found:
        getattr(thing, MARK)()
    return len(found)


def marked(owner: object) -> list[str]:
    """Where on an object something of LibGuard's is, of a torch module on the whole tree, as `module path: name`; empty
    when nothing is."""
    return [place for place, _ in _marked_things(owner)]


def _marked_things(owner: object) -> list[tuple[str, Any]]:
    found = []
    for path, one in owner.named_modules() if isinstance(owner, torch.nn.Module) else [("", owner)]:
        things = [("hook", hook) for hook in _hooks(one)] + list(vars(one).items())
        found += [(f"{path}: {name}", thing) for name, thing in things if hasattr(thing, MARK)]
    return found


def _hooks(one: object) -> list[Callable[..., Any]]:
    if not isinstance(one, torch.nn.Module):
        return []
    return [*one._forward_pre_hooks.values(), *one._forward_hooks.values()]


def _copy(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A callable of its own, because a bound method cannot carry a mark."""

    @functools.wraps(hook)
    def call(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs)

    return call
