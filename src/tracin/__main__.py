"""`python -m tracin` is the command `tracin`."""

from tracin.cli.main import main

if __name__ == "__main__":
    main()
