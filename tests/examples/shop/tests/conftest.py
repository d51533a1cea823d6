import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from trioserve.testing import ServeApp, ThreadServer

from shop.app import create_app


@pytest.fixture(scope="session")
def server(serve_app_session: ServeApp, tmp_path_factory: pytest.TempPathFactory) -> ThreadServer:
    """One shop for all tests that leave it as they found it, or tidy up with ``shop``."""
    return serve_app_session(create_app(tmp_path_factory.mktemp("database") / "shop.db"))


@pytest.fixture
def shop(server: ThreadServer) -> Iterator[httpx.Client]:
    """A client of that shop, with three packets of tea on the shelf."""
    with httpx.Client(base_url=server.url) as client:
        client.put("/stock", json={"item": "tea", "count": 3}).raise_for_status()
        yield client


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # --no-sandbox: the tests may run as root, in a container.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: ThreadServer, shop: httpx.Client) -> Iterator[Page]:
    """The shop's page, as a new visitor sees it."""
    with browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.goto("/")
        yield page


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """For a test that needs a shop of its own."""
    return tmp_path / "shop.db"
