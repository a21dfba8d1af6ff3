"""`python -m ntt_jax.cli`: the console script where it is not on the path."""

import sys

from ntt_jax.cli import main

sys.exit(main())
