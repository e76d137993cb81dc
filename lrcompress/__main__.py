"""`python -m lrcompress`, the same as the `lrcompress` command."""

from lrcompress.cli.app import main

if __name__ == "__main__":
    main()
