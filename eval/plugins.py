"""Packages that a command line names, as lerobot's own does; every process of a command imports them."""

from importlib import import_module

_named: list[str] = []


def import_plugin(package: str) -> None:
    """Import a package, its modules too, so that it registers policies, processor steps, environments.

    Raises:
        ImportError: or whatever else its modules raise; lerobot's `PluginLoadError`.
    """
    if hasattr(import_module(package), "__path__"):
        import_module("lerobot.configs.parser").load_plugin(package)
    if package not in _named:
        _named.append(package)


def forget_plugins() -> None:
    """Begin a command that names none yet; what is imported stays imported."""
    _named.clear()


def plugins() -> tuple[str, ...]:
    """Packages that this command has named, in their order."""
    return tuple(_named)
