"""Options that check themselves: dataclasses whose fields are declared with a `Rule`.

@dataclass(frozen=True)
class BatchOptions(CheckedOptions):
    batch_seconds: Annotated[float, Rule("seconds of a batch", above=0)] = 240.0
"""

from phonograph.configuration import field_rules
from phonograph.errors import ConfigError

__all__ = ["CheckedOptions"]


class CheckedOptions:
    """Base of dataclasses that refuse values which break a field's rule, or a relation between fields.

    Raises:
        ConfigError: the message holds every fault.
    """

    def __post_init__(self) -> None:
        checked = (field.fault(name, getattr(self, name)) for name, field in field_rules(type(self)).items())
        faults = [fault for fault in checked if fault is not None]
        if faults := faults or self._relation_faults():
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(faults))

    def _relation_faults(self) -> list[str]:
        """What is wrong between fields that each are allowed by themselves."""
        return []
