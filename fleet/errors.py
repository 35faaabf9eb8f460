"""The errors of the fleet, arranged by what the caller does next.

FleetError
├─ UsageError          the person asked for something we cannot do    tell them, in one line
│  ├─ SettingsError    fleet.toml, the environment or a flag is wrong
│  ├─ TaskError        a task, its model or its data cannot be used
│  └─ MissingExtraError  a package of an extra is not installed
├─ InputError          a reading or a label is not what was declared   refuse it, go on
├─ LinkError           the network failed                              try again later
│  ├─ BusyError        the coordinator said when to come back          not before that
│  ├─ AllowanceError   today's bytes are used up                       tomorrow
│  └─ ClockError       no offset mends this clock                      have it set
├─ StoreError          the device is full or busy                      try again later
├─ TrustError          a base or a release must not be used            keep the active one
│  ├─ SignatureError
│  ├─ ExpiredError
│  └─ DowngradeError
├─ RefusedError        a reply was not admitted                        drop it, record why
├─ BudgetError         no privacy left                                 infer, but learn no more
└─ TamperedError       stored state was altered or rolled back         stop, ask the operator
"""


class FleetError(Exception):
    """Anything this project raises on purpose. ``exit_code`` is what a command ends with."""

    exit_code = 1


class UsageError(FleetError):
    """The person asked for something that cannot be done; the message says what to do instead."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, out of range, or contradicts another."""


class TaskError(UsageError):
    """A task, its model or its data cannot be used."""

    exit_code = 3


class MissingExtraError(UsageError):
    """A package that this command needs is not installed."""

    exit_code = 4


class InputError(FleetError):
    """A reading or a label is not what the task's signature declares."""

    exit_code = 3


class LinkError(FleetError):
    """The network, or what stands in for it, failed."""

    exit_code = 5


class BusyError(LinkError):
    """The coordinator has too much to do. ``retry_after_s`` is its ``Retry-After`` in seconds, 0 without one."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AllowanceError(LinkError):
    """A metered link has carried what it may carry in one day."""


class ClockError(LinkError):
    """This clock and the coordinator's are too far apart for any signature or certificate."""


class StoreError(FleetError):
    """This device has no room or no time for it now: its disk or its memory is full, or busy for too long."""


class TrustError(FleetError):
    """A base or a release must not be used; the active one stays."""

    exit_code = 6


class SignatureError(TrustError):
    """The bytes are not what was signed, or were signed by someone else."""


class ExpiredError(TrustError):
    """It is past its date."""


class DowngradeError(TrustError):
    """It is not newer than what was accepted before."""


class RefusedError(FleetError):
    """A node's reply was not admitted. ``code`` is one word for logs, tables and tests."""

    exit_code = 7

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BudgetError(FleetError):
    """The privacy budget does not cover what was asked."""

    exit_code = 8


class TamperedError(FleetError):
    """Stored state was altered or rolled back."""

    exit_code = 9
