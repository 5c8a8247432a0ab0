"""KV-aware training: the model learns to live with what its cache rounds away."""
