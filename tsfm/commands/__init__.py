"""The functions behind the command: one file a command, imported only when it is called."""
