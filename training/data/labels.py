"""Where labels come from: a table of flows, the folder of a capture, corrections. Finds a flow's label.

Which row of a table is of which flow belongs to `label_table`, what a correction is of to `corrections`, what a label
becomes to `label_map`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tapline.models.flow import Flow
from tapline.training.data.corrections import Corrections
from tapline.training.data.label_map import LabelError as LabelError
from tapline.training.data.label_map import LabelMap
from tapline.training.data.label_table import JoinAccount, LabelTable
from tapline.training.data.origins import Origin


@dataclass(frozen=True)
class Labels:
    """Where the label of a flow comes from: a correction of it, else the table, else the first folder; and what
    the `map` makes of it.

    `from_folder`: the layout is `root/label/capture`. Without any of the three no flow has a label.
    """

    table: LabelTable | None = None
    from_folder: bool = False
    corrections: Corrections = field(default_factory=Corrections)
    map: LabelMap = field(default_factory=LabelMap)

    def label_of(self, origin: Origin, flow: Flow, account: JoinAccount | None = None) -> str | None:
        """The label of a flow of an origin, None when it has none; `account` is told what the table said."""
        return self.map.of(self._given(origin, flow, account or JoinAccount()))

    def _given(self, origin: Origin, flow: Flow, account: JoinAccount) -> str | None:
        if (correction := self.corrections.of(flow)) is not None:
            return correction.label
        label = None
        if self.table is not None:
            label = account.take(self.table.match(f"{origin.corpus}/{origin.capture}", flow))
        return label or (origin.folder if self.from_folder else None)

    def expected(self, origin: Origin) -> str | None:
        """What is known of the labels of an origin before it is read: its folder, or the table that names it."""
        if self.from_folder and origin.folder:
            return self.map.of(origin.folder)
        if self.table and (self.table.any_capture or self.table.name_of(f"{origin.corpus}/{origin.capture}")):
            return self.table.name
        return None

    def fingerprint(self) -> str:
        """A hash of everything that decides labels."""
        digest = hashlib.sha256(f"{self.from_folder} {self.table.sha256 if self.table else ''}".encode())
        self.corrections.update(digest)
        digest.update(self.map.sha256.encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, str | int | bool]:
        """What a manifest says of them."""
        return {
            "table": self.table.name if self.table else "",
            "from_folder": self.from_folder,
            "corrections": len(self.corrections),
            **({"map": self.map.name, "map_sha256": self.map.sha256} if self.map.becomes else {}),
        }
