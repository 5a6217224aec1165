"""A parser of HTML pages for tests: texts, table rows, and the resources that a browser would fetch."""

from html.parser import HTMLParser

VOID = {"meta"}
FETCHED = ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background")


class Reader(HTMLParser):
    """Parses a page; every tag must be closed in order.

    Attributes:
        tags: Every tag in order, with its attributes.
        texts: Every piece of text, except `styles`.
        rows: The cells of every row of every table, as text.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every tag of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def fetched(self) -> list[str]:
        """Every URL that a browser would fetch; anchors on the page itself are left out."""
        values = [attributes.get(name, "") for _, attributes in self.tags for name in FETCHED]
        return [value for value in values if value and not value.startswith("#")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        (self.styles if "style" in self.open else self.texts).append(data)
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] = " ".join([*self.rows[-1][-1].split(), *data.split()])
