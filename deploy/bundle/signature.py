"""Signatures of bundles: ed25519 over the bytes of manifest.json, which hold the digest of every other file.

A bundle that is signed has `manifest.sig` beside the manifest, 64 bytes as openssl writes them:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem
    openssl pkeyutl -sign -inkey key.pem -rawin -in bundle/manifest.json -out bundle/manifest.sig

Needs the package cryptography (pip install "vivace[sign]") on both sides.
"""

from pathlib import Path
from typing import Any

from vivace.policies.errors import BadBundle, BadSetting

FILE_NAME = "manifest.sig"


def private_key(file: str | Path) -> Any:
    """Read the key that signs, from a PEM file without a password.

    Raises:
        BadSetting: it is not there, or is no such key.
    """
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(Path(file).read_bytes(), password=None)
    except (OSError, ValueError, TypeError, _unsupported()) as error:
        raise BadSetting(_no_key(file, "private", "openssl genpkey -algorithm ed25519", error)) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadSetting(_no_key(file, "private", "openssl genpkey -algorithm ed25519", type(key).__name__))
    return key


def public_key(file: str | Path) -> Any:
    """Read the key that checks signatures, from a PEM file; raises `BadSetting` as `private_key` does."""
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(Path(file).read_bytes())
    except (OSError, ValueError, TypeError, _unsupported()) as error:
        raise BadSetting(_no_key(file, "public", "openssl pkey -in key.pem -pubout", error)) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise BadSetting(_no_key(file, "public", "openssl pkey -in key.pem -pubout", type(key).__name__))
    return key


def signature(manifest: bytes, key: Any) -> bytes:
    """Return what `manifest.sig` holds, made with a key of `private_key`."""
    signed: bytes = key.sign(manifest)
    return signed


def check_signature(folder: Path, manifest: bytes, key_file: str | Path) -> None:
    """Check that a bundle's manifest was signed.

    Args:
        folder: of the bundle.
        manifest: the bytes of its manifest.
        key_file: PEM file of the public key.

    Raises:
        BadSetting: the key cannot be read, or the package cryptography is not installed.
        BadBundle: it was not signed, or with another key, or was changed since.
    """
    key, file = public_key(key_file), folder / FILE_NAME
    from cryptography.exceptions import InvalidSignature

    if not file.is_file() or file.stat().st_size > 1024:
        raise BadBundle(
            f"{folder} has no signature ({FILE_NAME}), and --public_key asks for one; export it with "
            "--export.sign_key=key.pem"
        )
    try:
        key.verify(file.read_bytes(), manifest)
    except InvalidSignature as error:
        raise BadBundle(
            f"{file} was not made with the private key of {key_file}, or the manifest was changed since; do "
            "not run it"
        ) from error


def _no_key(file: str | Path, kind: str, command: str, why: object) -> str:
    reason = (str(why).splitlines() or ["cannot be read"])[0][:200]
    return f"{file} is no ed25519 {kind} key in a PEM file without a password ({reason}); make one: {command}"


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise BadSetting(
            "signatures need the package cryptography, which is not installed; pip install 'vivace[sign]'"
        ) from error
    return serialization, ed25519


def _unsupported() -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    return UnsupportedAlgorithm
