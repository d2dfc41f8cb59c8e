"""The command line of the embedded host."""

from __future__ import annotations

import argparse
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo", description="A small WebUI to see and test LibGuard in.")
    parser.add_argument("--port", type=int, default=7860, help="port on 127.0.0.1; 0 is any free one")
    parser.add_argument("--data", type=Path, default=None, help="folder for models and settings (default .demo)")
    parser.add_argument("--order", choices=("a1111", "sdnext"), default="a1111", help="whose callback order to follow")
    parser.add_argument("--extension", type=Path, action="append", default=[], help="one more extension folder")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--check", action="store_true", help="run every reported fault, without LibGuard and with it")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="with --check: write the rows there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, or serve the page until Ctrl+C."""
    args = _parser().parse_args(argv)
    # Late, so that --help answers at once.
    from demo import bench, check

    data = args.data or bench.DEFAULT_DATA
    if args.check:
        return check.main(args.json, order=args.order, data_dir=data, extensions=args.extension)
    host = bench.start(data, order=args.order, extensions=args.extension, port=args.port)
    print(f"Running on {host.url} ({args.order} order). Ctrl+C ends it.", flush=True)
    if not args.no_browser:
        webbrowser.open(host.url)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        host.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
