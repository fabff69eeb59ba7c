"""`python -m nebula_router` is the command `nebula`."""

from nebula_router.cli import main

if __name__ == "__main__":
    main()
