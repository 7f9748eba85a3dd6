"""`python -m cyclestyle`: print a list of the commands, or the version."""

import sys

import cyclestyle
from cyclestyle.cli.streams import tolerant_streams

OVERVIEW = """cyclestyle trains CycleGANs on two folders of images and translates photo sets with them.

  python -m cyclestyle.train +experiment=demo     train a model; the demo draws its own images
  python -m cyclestyle.translate checkpoint=...   translate a folder of photos
  python -m cyclestyle.evaluate checkpoint=...    score the translations
  python -m cyclestyle.export checkpoint=...      convert a model for cyclestyle or other programs
  python -m cyclestyle.download features=all      fetch pretrained networks, which scores use

Each command lists its keys with --help."""

with tolerant_streams():
    if sys.argv[1:] == ["--version"]:
        print(f"cyclestyle {cyclestyle.__version__}")
        sys.exit(0)
    is_help = sys.argv[1:] in (["--help"], ["-h"])
    print(OVERVIEW, file=sys.stdout if is_help else sys.stderr)
    sys.exit(0 if is_help else 2)
