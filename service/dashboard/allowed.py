"""What is done on a page is done with the key that has signed in: whether that may, and the account of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request
from nicegui import ui

from tapline.service.access.access import CALLER, Caller
from tapline.service.access.scopes import Scope


def signed_in(request: Request) -> Caller:
    """Who opened a page; pages are reached through the gate alone, which leaves this."""
    caller = request.scope[CALLER]
    assert isinstance(caller, Caller)
    return caller


def is_allowed(caller: Caller, wanted: Scope, action: str) -> bool:
    """Whether the key may do it now, whatever it might when the page was opened; who may not is told."""
    if caller.may(wanted):
        return True
    refuse(caller, action, f"that wants a key of the scope {wanted}")
    return False


def refuse(caller: Caller, action: str, why: str) -> None:
    """Tell the person why not, and leave a line."""
    caller.record(action, "403 scope")
    ui.notify(f"Not done: {why}.", type="warning")


async def accounted(caller: Caller, action: str, change: Callable[[], Awaitable[object]]) -> None:
    """Change something, and leave a line of how it went."""
    try:
        await change()
    except Exception as error:
        caller.record(action, f"failed: {type(error).__name__}")
        raise
    caller.record(action, "done")
