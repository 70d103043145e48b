"""The lens's section of the config. A config is checked before torch is loaded, so nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.lens import LogitLensConfig
from pipeline.config.section import bounded


@dataclass(frozen=True)
class CentredLensConfig(LogitLensConfig):
    """Centred logit lens: the readout of a state less the mean state of its layer over all prompts of the run.

    Prompts of one task have most of a state in common: that an answer is due, in which language, in which form. The
    logit lens shows that common part first. What is left without it is what this prompt adds.

    Arguments:
        kind: `centred_lens`.
        site, position, layers, mapping, inverted, top_k, batch_size: as in `LogitLensConfig`.
        strength: how much of the mean is taken away: 0 is the logit lens, 1 takes all of it.
    """

    kind: str = "centred_lens"
    strength: float = bounded(1.0, 0.0, 1.0)

    stage: ClassVar[str] = "centred_lens.stage:CentredLens"
    remote: ClassVar[bool] = False
    paper: ClassVar[str] = "an example of a lens of one's own"

    def describe(self) -> str:
        """What the report says of the lens."""
        return (
            f"{self.site} at {self.position} of a prompt, less {self.strength:g} times the mean of its layer over all "
            "prompts, is read out by the model’s own final norm and unembedding."
        )
