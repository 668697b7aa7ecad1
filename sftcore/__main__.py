"""`python -m sftcore`."""

from sftcore.cli import main

if __name__ == "__main__":
    main()
