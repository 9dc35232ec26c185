"""``python -m tsfm``."""

from tsfm.cli import main

if __name__ == "__main__":
    main()
