"""A progress bar for loops that run on the host."""

import contextlib
import sys


class _Silent:
    def update(self, n: int = 1) -> None:
        """Take n steps."""

    def set_postfix(self, **values) -> None:
        """Show numbers beside the bar."""


@contextlib.contextmanager
def progress_bar(total: int, label: str, unit: str = "it", show: bool = True):
    """A tqdm bar on stderr, or a silent stand-in with `show=False`.

    **Errors.** `ImportError` that names the extra when tqdm is not there.
    """
    if not show:
        yield _Silent()
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs tqdm: pip install 'physml[recipes]'") from error
    with tqdm(total=total, desc=label, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        yield bar
