"""C2PA content credentials: a manifest inside the picture that says it was made by a trained algorithm, with
our record as an assertion, signed with a certificate.

C2PA 2.x: action `c2pa.created` with IPTC's digital source type trainedAlgorithmicMedia. Needs `c2pa-python`
(the extra `c2pa`) and a certificate chain for its trust list; nothing is fetched, no time stamp is asked for.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from minisd import __version__
from minisd.errors import MinisdError, quoted

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
LABEL = "org.minisd.record"
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "AVIF": "image/avif"}
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")


class CredentialsError(MinisdError):
    """A manifest cannot be written."""


@dataclass(frozen=True)
class Credentials:
    """Who signs manifests. chain: PEM, the signer's certificate first; key: PEM, PKCS 8."""

    chain: str
    key: str
    algorithm: str = "es256"

    @classmethod
    def of(
        cls, chain: str | os.PathLike[str], key: str | os.PathLike[str], algorithm: str = "es256"
    ) -> Credentials:
        """From PEM files. Raises CredentialsError."""
        if algorithm not in ALGORITHMS:
            raise CredentialsError(f"{quoted(algorithm)} is not one of {', '.join(ALGORITHMS)}")
        texts = []
        for path in (chain, key):
            try:
                with open(path, encoding="ascii") as file:
                    texts.append(file.read(65_536))
            except (OSError, UnicodeDecodeError) as error:
                raise CredentialsError(f"cannot read {quoted(path)} as PEM: {error}") from error
        return cls(texts[0], texts[1], algorithm)

    def embedded(self, data: bytes, format: str, record: Mapping[str, object]) -> bytes:
        """The bytes of a picture file with a manifest about it. Raises CredentialsError."""
        try:
            import c2pa  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError as error:
            raise CredentialsError(
                "content credentials need the package c2pa-python: pip install 'minisd[c2pa]'"
            ) from error
        out = io.BytesIO()
        try:
            info = c2pa.C2paSignerInfo(self.algorithm, self.chain.encode(), self.key.encode(), None)
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest(record)) as builder:
                builder.sign(signer, TYPES[format], io.BytesIO(data), out)
        except c2pa.C2paError as error:
            raise CredentialsError(f"content credentials were not written: {error}") from error
        return out.getvalue()


def manifest(record: Mapping[str, object]) -> str:
    """The manifest's definition, as JSON for the builder."""
    agent = {"name": "minisd", "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE, "softwareAgent": agent}
    return json.dumps(
        {
            "claim_generator_info": [agent],
            "title": "picture drawn by minisd",
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
                {"label": LABEL, "data": record},
            ],
        }
    )
