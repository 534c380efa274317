"""Model-parallel unlearning on megatron-core: ranks, gradients and weights, and nothing of benchmarks.

A variable that holds a tensor may end in a suffix that spells its shape, a letter a dimension, as in ``logits_NV``:

* ``B``: sequences of a micro-batch;
* ``S``: positions of a sequence, padded to the longest of the micro-batch; of them this rank's, if they are split;
* ``N``: positions that something is computed of, of all sequences of the micro-batch, end to end;
* ``R``: rows of a sample, or requests;
* ``H``: the model's hidden size;
* ``V``: columns of the vocabulary on this tensor-parallel rank, those that pad the vocabulary among them.

A digit stands for itself: ``sums_2R`` is ``[2, R]``.
"""
