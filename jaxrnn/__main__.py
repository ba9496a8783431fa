"""``python -m jaxrnn``: the command ``jaxrnn``."""

import sys

from jaxrnn.cli import main

sys.exit(main())
