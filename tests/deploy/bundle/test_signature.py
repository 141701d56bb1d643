"""Signatures: where a public key is given, a bundle runs only if its private key signed it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_bundles
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from vivace.deploy.bundle.bundle import MANIFEST, Bundle
from vivace.deploy.bundle.signature import FILE_NAME, private_key, signature
from vivace.eval import cli
from vivace.policies.errors import BadBundle, BadSetting


def pem(key, file: Path, password: bytes | None = None) -> tuple[Path, Path]:
    """Write a key pair; returns the files of the private and the public key."""
    how = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    public = file.with_suffix(".pub")
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return file, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return pem(ed25519.Ed25519PrivateKey.generate(), tmp_path_factory.mktemp("keys") / "key.pem")


@pytest.fixture
def signed(keys, tmp_path) -> Path:
    folder = small_bundles.denoiser(tmp_path / "bundle")
    (folder / FILE_NAME).write_bytes(signature((folder / MANIFEST).read_bytes(), private_key(keys[0])))
    return folder


def test_a_signed_bundle_runs_with_its_key_and_without_any(signed, keys, capsys):
    told = {}
    Bundle.load(signed, keys[1], told.__setitem__)
    assert told["signature"] == f"made with the key of {keys[1]}"
    Bundle.load(signed)
    assert cli.main(["check", str(signed), f"--public_key={keys[1]}"]) == 0
    assert "signature  made with the key of" in capsys.readouterr().err


def test_openssl_checks_it_too(signed, keys):
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        keys[1],
        "-rawin",
        "-in",
        signed / MANIFEST,
    ]
    done = subprocess.run([*command, "-sigfile", signed / FILE_NAME], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_not_signed_by_the_key_is_refused(signed, keys, tmp_path):
    _, other = pem(ed25519.Ed25519PrivateKey.generate(), tmp_path / "other.pem")
    with pytest.raises(BadBundle, match="was not made with the private key of .*; do not run it"):
        Bundle.load(signed, other)
    other_bundle = small_bundles.writer(tmp_path / "writer")
    for name in (MANIFEST, "manifest.sha256"):
        shutil.copy(other_bundle / name, signed / name)
    with pytest.raises(BadBundle, match="was not made with the private key"):
        Bundle.load(signed, keys[1])
    (signed / FILE_NAME).unlink()
    with pytest.raises(BadBundle, match=r"has no signature \(manifest\.sig\), and --public_key asks for one"):
        Bundle.load(signed, keys[1])


def test_a_signature_of_another_size_is_refused(signed, keys):
    for data in (b"", b"x", bytes(64), bytes(2000)):
        (signed / FILE_NAME).write_bytes(data)
        with pytest.raises(BadBundle, match="was not made with|has no signature"):
            Bundle.load(signed, keys[1])


@pytest.mark.parametrize("kind", ["missing", "text", "curve", "locked", "other side"])
def test_what_is_no_key_is_named(signed, keys, tmp_path, kind):
    file = tmp_path / "key.pem"
    if kind == "text":
        file.write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----")
    if kind == "curve":
        pem(ec.generate_private_key(ec.SECP256R1()), file)
    if kind == "locked":
        pem(ed25519.Ed25519PrivateKey.generate(), file, b"secret")
    if kind == "other side":
        file = keys[1]
    with pytest.raises(BadSetting, match=r"is no ed25519 private key .*; make one: openssl genpkey"):
        private_key(file)
    public = keys[0] if kind == "other side" else tmp_path / "key.pub" if kind == "curve" else file
    with pytest.raises(BadSetting, match=r"is no ed25519 public key .*; make one: openssl pkey"):
        Bundle.load(signed, public)


def test_without_the_package_it_says_what_to_install(signed, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(BadSetting, match=r"need the package cryptography, .* pip install 'vivace\[sign\]'"):
        Bundle.load(signed, keys[1])
