"""From a master to signed bases and releases on the shelf; interrupted, it is done again to the same bytes."""

from coordinator.golden import golden_inputs
from coordinator.rollout import Phase, RolloutState
from fleet.artifact import RUNTIME, golden_digest, open_session
from fleet.errors import TamperedError
from fleet.quantization import Template
from fleet.release import (
    ROLLOUT_PATH,
    Base,
    Release,
    Rollout,
    base_path,
    release_path,
    template_path,
)
from fleet.settings import ReleaseSettings
from fleet.signing import sha256
from fleet.task import Task
from fleet.trust.repository import Repository
from fleet.weights import Flat

EVERYBODY = "f" * 64


class Publisher:
    """Quantizes and signs. A number stands for the same bytes for ever."""

    def __init__(self, repository: Repository, task: Task, template: Template) -> None:
        self._repository = repository
        self._task = task
        self._template = template

    def payload_digest(self, master: Flat) -> str:
        """The digest of a base's payload before it has a number."""
        return sha256(self._template.quantize(master))

    def base(self, number: int, round_: int, master: Flat) -> None:
        """Sign the int8 weights that nodes train from."""
        payload = self._template.quantize(master)
        base = Base(self._task.name, number, round_, sha256(payload), self._template.digest)
        self._repository.publish(
            "releases",
            {base_path(number, "weights.bin"): payload, base_path(number, "manifest.json"): base.to_bytes()},
        )

    def gate(self, master: Flat) -> tuple[bytes, bytes, str]:
        """The payload, the artifact and the golden digest of a release of ``master``.

        Raises:
            TaskError: Its golden outputs are not finite or cannot be told apart from rounding.
            ValueError: It cannot be quantized.
        """
        payload = self._template.quantize(master)
        artifact = self._template.artifact(payload)
        golden = golden_inputs(artifact, self._task.signature)
        return payload, artifact, golden_digest(open_session(artifact), golden)

    def manifest(
        self, number: int, base: int, master: Flat, settings: ReleaseSettings, *, withdraws: int = 0
    ) -> Release:
        """What a release of ``master`` would say; the gate on the way.

        Raises:
            TaskError: As for ``gate``.
        """
        payload, artifact, golden = self.gate(master)
        return Release(
            task=self._task.name,
            number=number,
            base=base,
            payload=sha256(payload),
            template=self._template.digest,
            artifact=sha256(artifact),
            golden=golden,
            runtime=RUNTIME,
            shadow_windows=settings.shadow_windows,
            probation_windows=settings.probation_windows,
            withdraws=withdraws,
        )

    def release(self, release: Release, master: Flat) -> None:
        """Sign a release that has its number; nothing happens if the shelf has it, whole.

        Made again under another numpy or another runtime, its golden inputs could be others.

        Raises:
            TamperedError: ``master`` is not what the release was made of.
        """
        if self._is_on_the_shelf(release):
            return
        payload = self._template.quantize(master)
        if sha256(payload) != release.payload:
            raise TamperedError(f"release {release.number} was made of another master")
        golden = golden_inputs(self._template.artifact(payload), self._task.signature)
        files = {
            "weights.bin": payload,
            "golden.bin": golden.astype("<f4").tobytes(),
            "manifest.json": release.to_bytes(),
        }
        targets = {release_path(release.number, name): data for name, data in files.items()}
        self._repository.publish(
            "releases", {template_path(self._template.digest): self._template.to_bytes(), **targets}
        )

    def _is_on_the_shelf(self, release: Release) -> bool:
        paths = [release_path(release.number, name) for name in ("manifest.json", "weights.bin", "golden.bin")]
        try:
            held = [self._repository.target(path) for path in [*paths, template_path(release.template)]]
        except TamperedError:  # what is lost or damaged is made again
            return False
        return held[0] == release.to_bytes() and None not in held

    def rollout(self, rollout: Rollout) -> None:
        """Sign who may serve the newest release now."""
        self._repository.publish("rollout", {ROLLOUT_PATH: rollout.to_bytes()})

    def heartbeat(self) -> None:
        """Sign again what would expire."""
        self._repository.heartbeat()


def rollout_of(state: RolloutState) -> Rollout:
    """The policy that a rollout's state amounts to: nobody in shadow, a wave's share, or everybody."""
    threshold = {Phase.DONE: EVERYBODY, Phase.WAVE: state.threshold}.get(state.phase, "")
    halted = state.phase in (Phase.HALTED, Phase.KEPT_OLD)
    return Rollout(state.release, state.salt, threshold, halted)
