"""A policy as files: manifest, graphs, digests, signature, golden chunks."""
