"""`python -m hemolens` is the same as `hemolens`."""

from hemolens.cli.main import run

if __name__ == "__main__":
    run()
