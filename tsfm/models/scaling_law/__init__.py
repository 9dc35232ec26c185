"""The encoder and the decoder of the scaling-law study of Yao et al. (ICLR 2025)."""
