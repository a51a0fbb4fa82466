"""Runs the command line for ``python -m thinksound``."""

import sys

from .cli import main

sys.exit(main())
