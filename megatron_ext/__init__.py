"""Model-parallel unlearning on megatron-core: ranks, gradients and weights; nothing of benchmarks or reports."""
