"""``python -m krzem``: ``krzem`` where an environment's scripts are not on the path."""

from krzem.cli.main import main

if __name__ == "__main__":
    main()
