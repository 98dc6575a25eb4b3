"""Hypothesis for kernels: no deadlines (a busy machine is no failure) and few examples, of many elements each."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("methods", deadline=None, max_examples=50)
settings.load_profile("methods")
