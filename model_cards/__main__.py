"""`python -m model_cards FOLDER` writes a run's card; `--check` says what in it is not in the records."""

import argparse
import sys

from . import check_card, write_card


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model_cards", description=__doc__)
    parser.add_argument("folder", help="the output_dir of a run")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if the card and the records differ"
    )
    options = parser.parse_args()
    try:
        if not options.check:
            print(write_card(options.folder))
            return 0
        problems = check_card(options.folder)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(problems) or "the card says what the records say")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
