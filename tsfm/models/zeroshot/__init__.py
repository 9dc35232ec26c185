"""The suite's own zero-shot models: an encoder and a decoder over patches."""
