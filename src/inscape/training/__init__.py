"""Small language models trained here: tokenizer, text made from facts, pretraining that resumes."""
