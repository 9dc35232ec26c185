"""Vision backbones of the suite, registered with timm. None is here yet: they arrive with their own release."""
