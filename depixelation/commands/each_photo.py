"""One after the other, the photos that a command is given: what fails costs a line, never the work on the others."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from depixelation.engine.outputs import check_outputs
from depixelation.engine.processes import shortage
from depixelation.figures.page import Entry, write_page
from utils import Keys, UserError, display_path, key

FLAG = {"nargs": "?", "const": "true"}  # --overwrite alone means --overwrite true


@dataclass(frozen=True)
class PhotoOptions(Keys):
    """Options of commands that write pictures for each photo, and a page to compare them."""

    output: str | None = key(None, "the folder for photos that are written; none: beside each", path=True)
    overwrite: bool = key(False, "work again on photos that have a result", argparse=FLAG)
    page: bool = key(
        False, "write the page to compare before and after for one photo too; several get one", argparse=FLAG
    )


@dataclass(frozen=True)
class Page:
    """The page of before and after of the photos that a command works on."""

    path: str
    existing: Callable  # (photo, base) -> the Entry of results that are there already
    words: dict  # further arguments of `write_page`


def page_of(name, options, paths, jobs, existing, **words):
    """The Page of this name, in --output, else beside the first photo; None where one photo needs none.

    options: PhotoOptions. paths: as the user named them. jobs: of photo_jobs. Raises UserError where it would cost the
    user a file.
    """
    if len(jobs) < 2 and not options.page:
        return None
    beside = paths[0] if os.path.isdir(paths[0]) else os.path.dirname(jobs[0][0])
    page = Page(os.path.join(options.output or beside, name), existing, words)
    check_outputs([(page.path, "page")], [path for path, *_ in jobs])
    return page


def for_each_photo(jobs, suffixes, begin, overwrite=True, page=None, note="", out=None):
    """Call work(photo, base) for each of photo_jobs' jobs, where work = begin(). Returns the exit_status.

    suffixes: of the files that it writes for each, whose names begin with base; without overwrite, photos that have all
    of them are skipped. page: a Page or None; for one, work returns the photo's Entry. note: what else to say of
    skipped photos. out: where to print; None: standard output.
    """
    failed, skipped, entries, unwritten = 0, 0, [], None
    work = begin() if any(problem is None for *_, problem in jobs) else None
    try:
        for path, base, problem in tqdm(jobs, unit=" photos", leave=False, disable=len(jobs) < 2):
            entry = None
            if not problem and not overwrite and all(os.path.exists(base + suffix) for suffix in suffixes):
                skipped += 1
                entry = page and page.existing(path, base)
            elif not problem:
                entry, problem = attempt(path, base, work)
            if problem:
                failed += 1
                entry = Entry(path, problem=problem)
                tqdm.write(f"main.py: error: {problem}", file=sys.stderr)
            entries.append(entry)
    finally:  # after Ctrl-C, too, a page shows what is done
        unwritten = finish_page(page, entries, out) if page and entries else None
    if skipped or (failed and len(jobs) > 1):
        kept = f", {skipped} have results, left as they are without --overwrite" if not overwrite else ""
        print(f"{failed} of {len(jobs)} photos failed{kept}{note if skipped else ''}", file=out)
    return exit_status(failed, len(jobs)) or bool(unwritten)


def finish_page(page, entries, out=None):
    """Write the Page of these Entries and say where it is. If it cannot be written, say why and return that."""
    written, problem = attempt(page.path, page.path, lambda path, _: write_page(entries, path, **page.words))
    if problem:
        print(f"main.py: error: {problem}", file=sys.stderr)
    else:
        print(f"Before and after: {display_path(page.path)}", file=out)
    return problem


def exit_status(failed, count):
    """That of a command on so many photos: 2 where it could not be done for any, 1 for some."""
    return 2 if failed == count else 1 if failed else 0


def attempt(path, base, work):
    """(what work(path, base) returns, None), or (None, why it failed)."""
    try:
        return work(path, base), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{display_path(error.filename or base)}: cannot be written ({error.strerror})"
    except (MemoryError, RuntimeError) as error:
        if not shortage(error):
            raise
        return None, f"{display_path(path)}: {shortage(error)}"
