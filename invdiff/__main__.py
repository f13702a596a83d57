"""`python -m invdiff` is the `invdiff` command."""

from invdiff.cli.main import main

if __name__ == "__main__":
    main()
