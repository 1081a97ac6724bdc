"""`trtrecipe` and `python -m trtrecipe`."""

from __future__ import annotations

import gc
import os
import sys

COLLECT_AFTER = 100_000
"""New objects until unreachable ones are looked for. A command makes many objects, and few cycles: looking after every
700, as Python does by itself, costs a large no-op build time for nothing."""


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(COLLECT_AFTER)
    # Looking for pydantic plugins reads the metadata of every installed package; none is of use here.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from trtrecipe.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before there was anything to interrupt
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
