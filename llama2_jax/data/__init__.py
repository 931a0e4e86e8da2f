"""Text in, packed token batches out. Nothing here imports jax."""
