"""Runs a command on one photo after another. A photo that fails costs a line, never the work on the others."""

import os
import sys

from tqdm import tqdm

from depixelation.engine.processes import shortage
from depixelation.images.photo_files import RESULT, photo_jobs
from utils import UserError, display_path


def for_each_photo(paths, suffixes, begin, output=None, overwrite=True, result=RESULT):
    """Call work(photo, base) for each photo of files and folders, where work = begin(). Returns the exit_status.

    It writes files whose names begin with base and end with these suffixes. Without overwrite, photos that have all of
    them are skipped. output, result: see photo_jobs.
    """
    jobs, failed, skipped = photo_jobs(paths, suffixes, output, result), 0, 0
    work = begin() if any(problem is None for *_, problem in jobs) else None
    for path, base, problem in tqdm(jobs, unit=" photos", leave=False, disable=len(jobs) < 2):
        if not problem and not overwrite and all(os.path.exists(base + suffix) for suffix in suffixes):
            skipped += 1
            continue
        problem = problem or attempt(path, base, work)
        if problem:
            failed += 1
            tqdm.write(f"main.py: error: {problem}", file=sys.stderr)
    if skipped or (failed and len(jobs) > 1):
        kept = f", {skipped} have results, left as they are without --overwrite" if not overwrite else ""
        print(f"{failed} of {len(jobs)} photos failed{kept}")
    return exit_status(failed, len(jobs))


def exit_status(failed, count):
    """A command's exit status: 2 if all of so many photos failed, 1 if some did."""
    return 2 if failed == count else 1 if failed else 0


def attempt(path, base, work):
    """Call work(path, base). Returns why it failed, or None."""
    try:
        work(path, base)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{display_path(error.filename or base)}: cannot be written ({error.strerror})"
    except (MemoryError, RuntimeError) as error:
        if not shortage(error):
            raise
        return f"{display_path(path)}: {shortage(error)}"
    return None
