"""`python -m boom_ray.cli`, where the command is not installed."""

import sys

from boom_ray.cli import main

sys.exit(main())
