"""Whether an exported graph computes what its source computes."""
