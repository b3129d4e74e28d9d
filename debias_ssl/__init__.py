"""Semi-supervised image classification with the bias of pseudo-labels removed."""

import os

__version__ = "0.1.0"

# OpenMP's threads wait for one another busily, for long: beside other programs, a step then takes many times as long.
# GNU's OpenMP, which torch brings, reads this when torch is imported; after a thousand turns its threads go to sleep.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
