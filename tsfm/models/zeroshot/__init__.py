"""Our own zero-shot encoder and decoder."""
