"""``python -m tsfm``."""

from tsfm.commands.cli import main

if __name__ == "__main__":
    main()
