"""A progress bar for loops that run on the host."""

import contextlib
import sys


class _Silent:
    def update(self, n: int = 1) -> None:
        """Take n steps."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show a text beside the bar."""


@contextlib.contextmanager
def progress_bar(total: int, label: str, unit: str = "it", *, show: bool | None = True, initial: int = 0):
    """A tqdm bar on stderr, or a silent stand-in.

    `show` None: when tqdm is installed and stderr is a terminal. `initial`: steps done before.
    **Errors.** `ImportError` that names the extra when `show` is True and tqdm is not there.
    """
    if show is None:
        show = sys.stderr.isatty()
        needed = False
    else:
        needed = show
    if show:
        try:
            from tqdm import tqdm
        except ImportError as error:
            if needed:
                raise ImportError("a progress bar needs tqdm: pip install 'physml[recipes]'") from error
            show = False
    if not show:
        yield _Silent()
        return
    with tqdm(total=total, initial=initial, desc=label, unit=unit, file=sys.stderr, dynamic_ncols=True) as bar:
        yield bar
