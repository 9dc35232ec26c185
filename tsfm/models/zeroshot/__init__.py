"""The suite's own zero-shot models: an encoder, a decoder and a decoder of long histories, all over patches."""
