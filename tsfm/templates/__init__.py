"""Page template and the demo's training config; a package, so that they are installed with the code."""
