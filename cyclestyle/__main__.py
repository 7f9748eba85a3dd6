"""`python -m cyclestyle`: print a list of the commands."""

import sys

print(
    """cyclestyle trains CycleGANs on two folders of images and translates photo sets with them.

  python -m cyclestyle.train +experiment=demo     train a model; the demo draws its own images
  python -m cyclestyle.translate checkpoint=...   translate a folder of photos
  python -m cyclestyle.evaluate checkpoint=...    score the translations
  python -m cyclestyle.export checkpoint=...      convert a model for cyclestyle or other programs

Each command lists its keys with --help.""",
    file=sys.stderr,
)
sys.exit(2)
