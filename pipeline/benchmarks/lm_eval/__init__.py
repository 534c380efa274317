"""Tasks of lm-evaluation-harness, WMDP and MMLU among them."""
