"""What hidden states tell of a sentence: linear probes with their baselines."""
