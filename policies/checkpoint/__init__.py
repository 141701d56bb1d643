"""From a checkpoint's name to its parts, each proven before it is used."""
