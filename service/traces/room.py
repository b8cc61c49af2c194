"""How much may be open of all trace models together, and whose windows are closed when it is too much."""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol


class Tenant(Protocol):
    """The windows of one model."""

    open_flows: int

    @property
    def subjects(self) -> Sized:
        """Its subjects."""
        ...

    def evict_subject(self) -> None:
        """Close the windows of the subject that was silent for longest, and forget it."""
        ...

    def evict_window(self) -> None:
        """Close the window that ends first."""
        ...


class Room:
    """The subjects and the flows that may be open in the windows of all tenants together.

    Where there are too many, the tenant that has most of them gives some up: one with short windows is not emptied by
    one with long ones.
    """

    def __init__(self, max_subjects: int, max_open_flows: int) -> None:
        self.max_open_flows = max_open_flows
        self._max_subjects = max_subjects
        self._tenants: list[Tenant] = []

    def enter(self, tenant: Tenant) -> None:
        """Count the windows of a tenant."""
        self._tenants.append(tenant)

    def leave(self, tenant: Tenant) -> None:
        """Count them no more."""
        self._tenants = [each for each in self._tenants if each is not tenant]

    @property
    def is_full(self) -> bool:
        """Whether more is open than may be."""
        return self._too_many_subjects or self._too_many_flows

    @property
    def _too_many_subjects(self) -> bool:
        return sum(len(tenant.subjects) for tenant in self._tenants) > self._max_subjects

    @property
    def _too_many_flows(self) -> bool:
        return sum(tenant.open_flows for tenant in self._tenants) > self.max_open_flows

    def keep(self) -> None:
        """Close windows until no more is open than may be."""
        subjects = flows = 0
        for tenant in self._tenants:
            subjects += len(tenant.subjects)
            flows += tenant.open_flows
        if subjects <= self._max_subjects and flows <= self.max_open_flows:
            return
        while self._too_many_subjects:
            max(self._tenants, key=lambda tenant: len(tenant.subjects)).evict_subject()
        while self._too_many_flows:
            max(self._tenants, key=lambda tenant: tenant.open_flows).evict_window()
