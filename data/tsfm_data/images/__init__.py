"""Image sets from folders, Parquet and arrays; scores of class probabilities."""
