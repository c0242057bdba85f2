"""What runs `python -m fimoda_lib.run`."""

import sys

from .command import main

sys.exit(main())
