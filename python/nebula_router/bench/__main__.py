"""`python -m nebula_router.bench`."""

from nebula_router.bench.cli import app

if __name__ == "__main__":
    app()
