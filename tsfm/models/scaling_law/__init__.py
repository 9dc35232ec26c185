"""The encoder and the decoder of the published scaling-law study."""
