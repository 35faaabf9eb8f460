"""What the coordinator has published, read through the installer: verified bytes turned into values."""

from fleet.errors import LinkError, SignatureError, TrustError
from fleet.quantization import Template
from fleet.release import ROLLOUT_PATH, Base, Release, Rollout, base_path, release_path, template_path
from fleet.signing import sha256
from fleet.weights import Flat
from node.installer import Installer


class Catalog:
    """Bases, releases and the rollout, each checked against the digest that was signed for it."""

    def __init__(self, installer: Installer) -> None:
        self._installer = installer
        self._templates: dict[str, Template] = {}

    def refresh(self) -> None:
        """Take in the newest signed metadata.

        Raises:
            LinkError: The network failed.
            TrustError: What it offered must not be used.
        """
        self._installer.refresh()

    def rollout(self) -> Rollout | None:
        """Who may serve which release now; None before the first."""
        data = self._installer.fetch(ROLLOUT_PATH)
        return Rollout.from_bytes(data) if data else None

    def has_base(self, number: int) -> bool:
        """Whether the metadata that is trusted now lists a base."""
        try:
            return self._installer.fetch(base_path(number, "manifest.json")) is not None
        except (LinkError, TrustError):
            return False

    def base(self, number: int) -> tuple[Base, Flat]:
        """A base and the float32 weights that training starts from.

        Raises:
            TrustError: Not signed, or signed for other bytes.
        """
        base = Base.from_bytes(self._signed(base_path(number, "manifest.json")))
        payload = self._signed(base_path(number, "weights.bin"))
        if base.number != number or sha256(payload) != base.payload:
            raise SignatureError(f"base {number} is signed for other bytes")
        return base, self._template(base.template).dequantize(payload)

    def manifest(self, number: int) -> Release:
        """What a release is, without its bytes.

        Raises:
            TrustError: Not signed, or signed as another.
        """
        release = Release.from_bytes(self._signed(release_path(number, "manifest.json")))
        if release.number != number:
            raise SignatureError(f"release {number} is signed for other bytes")
        return release

    def release(self, number: int) -> tuple[Release, bytes, bytes]:
        """A release, its artifact and its golden inputs.

        Raises:
            TrustError: Not signed, or signed for other bytes.
        """
        release = self.manifest(number)
        payload = self._signed(release_path(number, "weights.bin"))
        artifact = self._template(release.template).artifact(payload)
        if sha256(artifact) != release.artifact:
            raise SignatureError(f"release {number} is signed for other bytes")
        return release, artifact, self._signed(release_path(number, "golden.bin"))

    def _template(self, digest: str) -> Template:
        if digest not in self._templates:
            data = self._signed(template_path(digest))
            if sha256(data) != digest:
                raise SignatureError(f"template {digest[:12]} is signed for other bytes")
            self._templates[digest] = Template.from_bytes(data)
        return self._templates[digest]

    def _signed(self, path: str) -> bytes:
        data = self._installer.fetch(path)
        if data is None:
            raise SignatureError(f"{path} is not signed by the coordinator")
        return data
