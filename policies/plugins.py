"""What other packages add to lerobot: distributions called `lerobot_{policy,env,robot,camera,…}_*`."""

import logging
from functools import cache

from vivace.policies.errors import in_one_line


@cache
def register_plugins() -> None:
    """Import lerobot's plug-ins, once; one that cannot be imported is left out, and told in one line.

    Raises:
        ImportError: lerobot is not installed.
    """
    from lerobot.utils.import_utils import register_third_party_plugins

    root, failed = logging.getLogger(), _Failed(logging.ERROR)
    handlers, root.handlers = root.handlers, [failed]  # lerobot logs a stack for each
    try:
        register_third_party_plugins()
    finally:
        root.handlers = handlers
    for told in failed.told:
        logging.getLogger("vivace").warning(told)


class _Failed(logging.Handler):
    """Collects lerobot's reports of failed imports."""

    def __init__(self, level: int):
        super().__init__(level)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what was said, with its reason."""
        reason = f" ({in_one_line(record.exc_info[1])})" if record.exc_info and record.exc_info[1] else ""
        self.told.append(record.getMessage() + reason)
