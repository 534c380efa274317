"""What a training step keeps in memory beside the weights, and what it may keep smaller or elsewhere.

Imports neither torch nor megatron-core.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_ext.schema import Strict


class MemorySettings(Strict):
    """How a run under bf16 saves memory. Unlike a layout, all but ``optimizer: offload`` change what is computed."""

    gradients: Literal["fp32", "bf16"] = Field(
        "fp32", description="of what gradients are added up and reduced in, and of a rule's further vectors"
    )
    optimizer: Literal["resident", "offload", "precision-aware"] = Field(
        "resident",
        description="resident: moments and fp32 weights on the GPU; offload: in host memory, where the update is "
        "computed; precision-aware: Transformer Engine's, with bf16 moments and the 16 bits that bf16 weights lack",
    )
    main_weights: bool = Field(
        True, description="false: bf16 weights and moments are updated as they are, with no fp32 copy of the weights"
    )

    def problem(self, precision: str, kernels: str) -> str | None:
        """What does not go with the run's precision and kernels, beginning with the key below ``runtime``."""
        if self != MemorySettings() and precision != "bf16":
            return f"memory: needs precision: bf16, given '{precision}'; allowed: none of its keys"
        if self.optimizer == "precision-aware" and kernels != "te":
            return (
                f"memory: optimizer: 'precision-aware' is Transformer Engine's, on a GPU, and needs kernels: te, "
                f"given '{kernels}'; allowed: 'resident', 'offload'"
            )
        if not self.main_weights and self.optimizer != "resident":
            return f"memory: main_weights: false with optimizer: '{self.optimizer}', which keeps them; allowed: true"
        if not self.main_weights and self.gradients != "bf16":
            return "memory: main_weights: false needs gradients: bf16, given 'fp32'; allowed: true"
        if not self.main_weights and kernels == "te":
            return "memory: main_weights: false needs kernels: torch, given 'te'; allowed: true"
        return None

    def optimizer_problem(self, name: str, distributed: bool) -> str | None:
        """Why ``optimizer`` does not go with AdamW or SGD, by name, and the layout's distributed optimizer or none."""
        if self.optimizer == "resident":
            return None
        if name != "adamw":
            return f"'{self.optimizer}' needs the optimizer adamw, given '{name}'; allowed: 'resident'"
        if not distributed:
            return f"'{self.optimizer}' needs layout.distributed_optimizer: true, given false; allowed: 'resident'"
        return None
