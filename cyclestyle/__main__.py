"""`python -m cyclestyle`: what there is to type."""

import sys

print(
    """cyclestyle trains CycleGANs on two folders of pictures and translates photo sets with them.

  python -m cyclestyle.train +experiment=demo     train; the demo draws its own pictures
  python -m cyclestyle.translate checkpoint=...   a folder of pictures in, the same folder translated out
  python -m cyclestyle.evaluate checkpoint=...    how good are the translations?
  python -m cyclestyle.export checkpoint=...      the model as files for this program, the reference's or others

Each lists its keys with --help.""",
    file=sys.stderr,
)
sys.exit(2)
