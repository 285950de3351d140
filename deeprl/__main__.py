"""`python -m deeprl`: the command line."""

import sys

from deeprl.cli import main

sys.exit(main())
