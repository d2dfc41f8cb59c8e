"""Settings: what an option is, and the object that holds their values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class OptionInfo:
    """One setting. `section` is (id, title) of its page; `component_args` may be a function, as in A1111."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        onchange: Callable[[], None] | None = None,
        section: tuple[str | None, str] | None = None,
        refresh: Callable[[], None] | None = None,
        **other: Any,
    ) -> None:
        self.default, self.label, self.component = default, label, component
        self.component_args, self.onchange, self.section, self.refresh = component_args, onchange, section, refresh
        self.other = other
        self.comment = ""

    def info(self, text: str) -> OptionInfo:
        """Add an explanation that is shown under the control."""
        self.comment = text
        return self

    def needs_restart(self) -> OptionInfo:
        """Say that the setting takes effect after a restart."""
        return self.info(f"{self.comment} (requires restart)".strip())

    def needs_reload_ui(self) -> OptionInfo:
        """Say that the setting takes effect after Reload UI."""
        return self.info(f"{self.comment} (requires Reload UI)".strip())

    def arguments(self) -> dict[str, Any]:
        """The component's arguments, resolved."""
        args = self.component_args() if callable(self.component_args) else self.component_args
        return dict(args or {})


def options_section(section: tuple[str, str], options: dict[str, OptionInfo]) -> dict[str, OptionInfo]:
    """Put every option of `options` on one page."""
    for option in options.values():
        option.section = section
    return options


class Options:
    """The values by name. An attribute that was never set reads as its default.

    Raises AttributeError for a name that no one has added, as the real hosts do.
    """

    def __init__(self) -> None:
        self.__dict__.update(data={}, data_labels={}, filename=None)

    def reset(self, templates: dict[str, OptionInfo], filename: Path) -> None:
        """Start anew with `templates`, and with the values of `filename` if it exists."""
        self.__dict__.update(data={}, data_labels=dict(templates), filename=filename)
        if filename.is_file():
            self.data.update(json.loads(filename.read_text(encoding="utf-8")))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("data", {}):
            return self.data[name]
        if name in self.__dict__.get("data_labels", {}):
            return self.data_labels[name].default
        raise AttributeError(f"no option is called {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self.data[name] = value

    def add_option(self, key: str, option: OptionInfo) -> None:
        """Register an option; extensions call it in `on_ui_settings`."""
        self.data_labels[key] = option
        self.data.setdefault(key, option.default)

    def get_default(self, key: str) -> Any:
        """The default of `key`, None for an unknown one."""
        return self.data_labels[key].default if key in self.data_labels else None

    def set(self, key: str, value: Any, run_callbacks: bool = True) -> bool:
        """Set one option and run its `onchange`. Returns whether the value changed."""
        changed = getattr(self, key, None) != value
        self.data[key] = value
        if changed and run_callbacks:
            self.run_onchange([key])
        return changed

    def set_many(self, values: dict[str, Any]) -> list[str]:
        """Set several options, run each different `onchange` once, save. Returns the keys that changed."""
        changed = [key for key, value in values.items() if self.set(key, value, run_callbacks=False)]
        self.run_onchange(changed)
        self.save()
        return changed

    def run_onchange(self, keys: Iterable[str]) -> None:
        """Run the `onchange` functions of `keys`, each once."""
        hooks = [self.data_labels[key].onchange for key in keys if key in self.data_labels]
        for hook in dict.fromkeys(hook for hook in hooks if hook is not None):
            hook()

    def save(self, filename: str | Path | None = None) -> None:
        """Write all values as JSON to `filename`, else to the data folder's config.json."""
        target = Path(filename or self.filename)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.data, indent=4), encoding="utf-8")
