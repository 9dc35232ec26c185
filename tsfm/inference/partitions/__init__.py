"""Tables in many files, one part after the other or on a cluster: the same work for every command."""
