"""What a forget loss, a retain loss and an update rule need together, and what does not fit together in them.

This module imports neither torch nor megatron-core, so that planning can read it on a machine that has neither.
"""

from __future__ import annotations

from megatron_ext import losses, updates
from megatron_ext.config import TrainableLayers


def needed_files(forget: losses.Loss, rule: updates.Rule) -> list[str]:
    """The optional entries of a topic that a method needs."""
    found = ["reference_logps"] if forget.needs_reference_logps else []
    if forget.needs_preferred_answers:
        found += ["preferred_answers"] + (["preferred_answers_logps"] if forget.needs_reference_logps else [])
    return found + (["retain_reference_logps"] if rule.needs_retain_reference_logps else [])


def problems(
    forget: losses.Loss, retain: losses.Loss | None, rule: updates.Rule, trainable_layers: TrainableLayers | None
) -> list[str]:
    """What does not fit together in a method: messages that begin with the key."""
    found = []
    if rule.needs_retain and retain is None:
        found.append(f"retain_loss: is missing, and the rule {rule.name!r} needs one")
    for key, loss in (("forget_loss", forget), ("retain_loss", retain)):
        if loss is None:
            continue
        if loss.sees == "hidden" and trainable_layers is None:
            found.append(f"trainable_layers: is missing, and the loss {loss.name!r} needs it")
        if loss.sees == "logits" and trainable_layers is not None:
            allowed = "with 'trainable_layers', allowed are losses on hidden states"
            found.append(f"{key}: {loss.name!r} needs the whole model; {allowed}")
        if key == "retain_loss" and (loss.needs_reference_logps or loss.needs_preferred_answers):
            found.append(f"{key}: {loss.name!r} is a forget loss: it needs what is made of the forget set only")
    if rule.needs_retain_reference_logps and (retain is None or retain.name != "nll"):
        found.append(f"retain_loss: must be 'nll' where the rule {rule.name!r} measures it before unlearning")
    return found
