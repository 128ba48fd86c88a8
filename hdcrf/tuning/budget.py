"""How long a search may take, and what it found: whichever method searches."""

from __future__ import annotations

import time
from dataclasses import dataclass

from hdcrf.tuning.objective import Parameters

__all__ = ["Budget", "Found"]


@dataclass(frozen=True)
class Budget:
    """How long to search: until either is used up.

    Attributes:
        trials: In all, those of earlier calls included; None for any number.
        seconds: Of this call; None for any time.
    """

    trials: int | None
    seconds: float | None

    def is_used(self, trials: int, began: float) -> bool:
        """Return whether it is, after so many trials since a time of the monotonic clock."""
        if self.trials is not None and trials >= self.trials:
            return True
        return self.seconds is not None and time.monotonic() - began >= self.seconds


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        parameters: The best.
        score: Theirs.
        number: Of the trial that they were, from 1.
        trials: How many there were.
        earlier: How many of them earlier calls made.
    """

    parameters: Parameters
    score: float
    number: int
    trials: int
    earlier: int = 0
