"""How far an engine may be from the recorded run: the limits of the parity gate and of the referee over other engines."""

from __future__ import annotations

MIN_COSINE = 0.999  # of any image token; docs/design.md, "Parity gate"
MIN_AGREEMENT = 0.99  # of the tokens that are no ties
# Two fp32 engines differ by some 1e-5 in a logit; where the best two are nearer than this, either may win.
TIE_MARGIN = 1e-3
