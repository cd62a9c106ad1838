"""Entry point of `python -m nlocalmodels_downloader`."""

from nlocalmodels_downloader.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
