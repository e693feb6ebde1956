"""How strongly training distorts an image."""

from typing import Literal

Strength = Literal["strong", "weak", "none"]

# Photometric distortions "by Andrew Howard", it says there. His (2013) are brightness, contrast and saturation by
# factors this far from 1, and Krizhevsky's noise (2012) along the principal components of ImageNet's colours, of this
# standard deviation. The recipe has less of it (Sec. 4.2.1) and says no number: a quarter.
PHOTOMETRIC = {"strong": (0.5, 0.1), "weak": (0.125, 0.025)}
