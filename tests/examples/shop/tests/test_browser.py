import httpx
from playwright.sync_api import Page, expect


def test_the_page_shows_the_shelves(page: Page) -> None:
    expect(page.locator("#shelves")).to_contain_text("tea: 3")


def test_buying_is_confirmed_and_seen_on_the_shelf(page: Page) -> None:
    page.get_by_label("Item").fill("tea")
    page.get_by_role("button", name="Buy").click()
    expect(page.get_by_text("Thank you for buying tea.")).to_be_visible()
    expect(page.locator("#shelves")).to_contain_text("tea: 2")


def test_who_comes_too_late_is_told_so(page: Page) -> None:
    page.get_by_label("Item").fill("gold")
    page.get_by_role("button", name="Buy").click()
    expect(page.get_by_text("Sorry, no more gold.")).to_be_visible()


def test_what_others_buy_is_seen_without_a_reload(page: Page, shop: httpx.Client) -> None:
    shop.post("/orders", json={"item": "tea"})
    expect(page.locator("#shelves")).to_contain_text("tea: 2")
