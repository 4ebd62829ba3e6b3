"""`python -m histodistill.training.cli`: the same as `histodistill`."""

from histodistill.training.cli import main


if __name__ == "__main__":
    main()
