"""The scale of samples, whichever model takes them: 1 is full scale in float32, 32,768 in 16-bit integers."""

from __future__ import annotations

INT16_SCALE = 1 / 32768
"""From 16-bit samples to -1..1."""

LARGEST_SAMPLE = 1000.0
"""60 dB above full scale, beyond any headroom: larger samples were never scaled to -1..1."""
