"""``python -m pipeline.report SPEC.yaml`` and ``python -m pipeline.report --print FOLDER``."""

import sys

from pipeline.report import main

if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
