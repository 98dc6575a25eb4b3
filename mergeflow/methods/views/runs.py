"""What a run of rows is made from, when it is not from an input: the words of the view ``vocabulary``."""

from __future__ import annotations

ZEROS, MEANS, PADDING = -1, -2, -3
