"""What a user sees first: the nodes in the search."""

from __future__ import annotations

from devhost import PACK_NAME
from playwright.sync_api import Page, expect
from running_server import RunningServer


def pack_nodes(server: RunningServer) -> dict[str, str]:
    """Node id -> display name of every node the pack registered."""
    return {
        name: schema["display_name"]
        for name, schema in server.object_info().items()
        if PACK_NAME in schema["python_module"]
    }


def test_every_node_is_found_by_the_search(page: Page, server: RunningServer) -> None:
    names = pack_nodes(server)
    assert names
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.wait_for_function("document.activeElement instanceof HTMLInputElement")
    page.keyboard.type("InstaFlow", delay=30)
    for name in names.values():
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
