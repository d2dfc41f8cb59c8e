"""LibGuard: no generation is lost, or silently wrong, because parts of a model disagree.

The rooms: `settings` (what the user wants), `watch` (one generation), `guards` (what is looked at and repaired),
`tensors` (how), `hosts` (the only place that knows a WebUI), `findings`, `ledger` and `console` (what is said),
`border` (the one place where an error of LibGuard's own is caught), `hooks` (attach and detach), `ui`.
"""

__version__ = "0.4.0"
