"""Tables as CSV files: the logs of runs, and the figures of --evaluate."""

import csv
import io

from utils import UserError, atomic_write, open_plain


def write_table(rows, path):
    """Write a CSV file, one line per dict."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(table.getvalue().encode(errors="backslashreplace"))


def read_log(path):
    """The rows of losses/NAME.csv, numbers as floats. Raises UserError."""
    try:
        with open_plain(path, "r", encoding="utf-8", newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        if not rows:
            raise ValueError("it has no rows")
        if not {"epoch", "minutes"} <= rows[0].keys():
            raise ValueError("it has no columns epoch and minutes")
        return rows
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a run that was trained here") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is not the log of a run ({error})") from None
