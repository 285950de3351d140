"""`python -m deeprl`: the command line."""

import sys

from deeprl.commands.main import main

sys.exit(main())
