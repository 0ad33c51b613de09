"""How sure a model may be that the target chooses what it would choose itself.

Its own probabilities say how likely a token is, while a guess asks whether the target's best token is the same as its
own: uncertain is only the difference between the two models. So the chance of a token is softmax(b * score), with a
sharpness b above 1 that is fitted, by likelihood, to what the target chose where it could be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.compute.kernels import F64, I64

CHOICES = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0])
TYPICAL_WEIGHT = 2.0
"""How much what is typical counts: like so many choices with a nat at stake each."""
FADING = 0.997


class Sharpness:
    """Fitted as choices are seen."""

    def __init__(self, typical: float) -> None:
        """`typical`: what fits before anything is known."""
        self._likelihoods: F64 = -TYPICAL_WEIGHT * np.log(CHOICES / typical) ** 2
        """Log-likelihood of what was seen, for each of CHOICES."""

    @property
    def value(self) -> float:
        return float(CHOICES[self._likelihoods.argmax()])

    def chances(self, scores: F64) -> F64:
        """Of tokens with such scores, of which the best has 0."""
        weights = np.exp(self.value * scores)
        return weights / weights.sum()  # type: ignore[no-any-return]

    def learn(self, scores: F64, chosen: I64) -> None:
        """The target chose the token at `chosen`, or none of these, where that is empty."""
        if len(chosen) and np.isfinite(scores[chosen[0]]):
            sharpened = CHOICES[:, None] * scores
            self._likelihoods *= FADING
            self._likelihoods += sharpened[:, chosen[0]] - np.log(np.exp(sharpened).sum(axis=1))
