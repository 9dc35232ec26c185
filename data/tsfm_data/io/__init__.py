"""Data sets and tables: download, files, readers, and every check of user input."""
