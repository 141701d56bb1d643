"""From torch to a bundle, proven equal."""
