"""``python -m lens_attr.cli``."""

from lens_attr.cli import main

main()
