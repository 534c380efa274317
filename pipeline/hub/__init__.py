"""Files of the Hugging Face hub and of local folders that stand for its repositories."""
