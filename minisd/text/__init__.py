"""Prompts to tensors: the tokenizer, and what each family feeds its UNet."""
