"""`python -m minisd` is the command `minisd`."""

import sys

from minisd.cli import main

sys.exit(main())
