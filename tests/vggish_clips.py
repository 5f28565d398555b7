"""How clips become VGGish's windows with the default front end."""

from __future__ import annotations

from runner.audio.framing import Framing
from runner.audio.preparation import Preparation
from runner.pipeline.messages import DecodeOptions
from runner.vggish.spec import VGGISH

PREPARATION = Preparation(VGGISH.sample_rate)
FRAMING = Framing.of(VGGISH)
OPTIONS = DecodeOptions(PREPARATION, FRAMING)
