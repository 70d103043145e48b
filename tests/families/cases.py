"""Building a family's tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.families.attention import ATTENTION
from tests.families.classic import CLASSIC
from tests.families.experts import EXPERTS
from tests.families.hybrid import HYBRID
from tests.families.inside import INSIDE


@dataclass(frozen=True)
class Family:
    """One case.

    Arguments:
        model_type: transformers' name of the family.
        config: what differs from that family's defaults.
    """

    model_type: str
    config: Mapping[str, object]


FAMILIES: dict[str, Family] = {
    name: Family(model_type, config)
    for cases in (ATTENTION, EXPERTS, HYBRID, CLASSIC, INSIDE)
    for name, (model_type, config) in cases.items()
}


def build(name: str) -> nn.Module:
    """A fresh tiny model of a case, in eval mode, the same at every call."""
    return initialized(FAMILIES[name])


def auto_class(config: object) -> Any:
    """What makes a model of a config: a causal language model where transformers has one, else one that sees."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def initialized(family: Family) -> nn.Module:
    """The same of any config."""
    config = CONFIG_MAPPING[family.model_type](**family.config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(config).from_config(config)
        for parameter in model.parameters():  # larger than the usual start, so that predictions differ visibly
            nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
        for path, buffer in model.named_buffers():
            if path.endswith("layer_scalar"):
                nn.init.normal_(buffer, mean=1.0, std=0.15)
            elif path.endswith("bias") and buffer.dim() == 1:  # of the experts' scores
                nn.init.normal_(buffer, std=0.15)
    return model.eval()
