"""Forms of scaling laws, how they are fitted, and their intervals."""
